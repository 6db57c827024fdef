import logging
import threading
import types

import jax
import numpy as np
import pytest

from refine_jax.datasets import memory, stream
from refine_jax.datasets.feed import Feed, batch_images
from refine_jax.datasets.overlay import Overlay

COUNT = 23


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (COUNT, 4, 5, 3), np.uint8)


def feeds(images, workers=0):
    """The same feed, of images on the device and of streamed ones."""
    given = (COUNT, 5, jax.random.key(3))
    return Feed(*given, keep_last=True), Feed(*given, keep_last=True, images=images, workers=workers)


@pytest.mark.parametrize(("first", "stop"), [(0, 12), (7, 11), (12, 12)])
def test_streamed_batches_are_those_of_the_device_from_any_step_on(images, first, stop):
    overlay = Overlay(images)
    overlay[[0, 4, 22]] = 255 - images[[0, 4, 22]]
    on_device, streamed = feeds(overlay)
    data, none = stream.place("victim", overlay, "device", jax.devices()[0])
    assert none is None
    shown = jax.jit(batch_images)
    batches = list(streamed.batches(first, stop))
    assert len(batches) == stop - first
    for batch, same in zip(batches, on_device.batches(first, stop), strict=True):
        np.testing.assert_array_equal(batch["indices"], same["indices"])
        np.testing.assert_array_equal(shown({}, batch), shown(data, same))


def test_a_stream_that_is_left_leaves_no_thread_behind(images):
    batches = feeds(images)[1].batches(0, 10**4)
    next(batches)
    batches.close()
    for thread in threading.enumerate():
        if "grain" in thread.name:
            thread.join(10)
            assert not thread.is_alive()


class Slow:
    """Images that are no array, as those that are decoded when they are read."""

    shape, dtype = (COUNT, 4, 5, 3), np.dtype(np.uint8)

    def __len__(self):
        return COUNT

    def __getitem__(self, rows):
        rows = np.arange(COUNT)[rows]
        return np.broadcast_to(rows[:, None, None, None], (len(rows), 4, 5, 3)).astype(np.uint8)


def test_worker_processes_give_the_same_batches_in_the_same_order_with_what_is_laid_over():
    overlay = Overlay(Slow())
    overlay[[1, 20]] = np.full((2, 4, 5, 3), 200, np.uint8)
    by_threads, by_processes = (list(feeds(overlay, workers)[1].batches(3, 10)) for workers in (0, 2))
    for batch, same in zip(by_processes, by_threads, strict=True):
        np.testing.assert_array_equal(batch["indices"], same["indices"])
        np.testing.assert_array_equal(batch["images"], same["images"])
        expected = np.where(np.isin(batch["indices"], [1, 20]), 200, batch["indices"])
        np.testing.assert_array_equal(batch["images"][:, 0, 0, 0], expected)


def device(memory):
    return types.SimpleNamespace(platform="gpu", memory_stats=lambda: {"bytes_limit": memory})


@pytest.mark.parametrize(
    ("wanted", "memory", "place"),
    [(None, 2760, "device"), (None, 2759, "host"), ("host", 10**9, "host"), ("device", 1, "device")],
)
def test_images_go_where_they_fit_or_are_wanted_and_the_log_says_so(images, caplog, wanted, memory, place):
    caplog.set_level(logging.INFO)
    assert images.nbytes == 1380
    on_device, streamed = stream.place("victim", images, wanted, device(memory))
    assert (list(on_device), streamed is images) == ((["images"], False) if place == "device" else ([], True))
    said = "on the device" if place == "device" else "streamed from the host"
    why = "as run.feed says" if wanted else "by their size"
    assert (
        f"victim: 1.38e-06 GB of images are {said} ({why}; of the device's memory, {memory / 2e9:.3g} GB"
        in caplog.text
    )


def test_a_cpus_memory_is_the_machines(monkeypatch):
    monkeypatch.setattr(memory, "_limits", lambda root: iter(()))
    (first, *_) = jax.devices("cpu")
    with open("/proc/meminfo") as file:
        kilobytes = int(file.readline().split()[1])
    assert stream.memory_of(first) == pytest.approx(1024 * kilobytes, rel=0.05)
    monkeypatch.setattr(memory, "_limits", lambda root: iter([1 << 20]))
    assert stream.memory_of(first) == 1 << 20
