"""Images that stay on the host: which do, and how their batches are read ahead of the training, by Grain."""

import logging
import os
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from refine_jax.datasets import memory
from refine_jax.datasets.overlay import Overlay

logger = logging.getLogger(__name__)

PLACES = ("device", "host")
# Of a device's memory, as much may be images; the rest is for weights and what a step computes.
_SHARE = 0.5
# Batches that are ready, or on their way, while one is trained on; and the most threads that read them.
_AHEAD, _THREADS = 4, 8


def place(stage: str, images: Any, wanted: str | None, device: jax.Device) -> tuple[dict[str, jax.Array], Any]:
    """Decides whether images are kept in the memory of a device or streamed to it, and says so in the log.

    Args:
        stage: Of the training, for the log.
        images: uint8, with `nbytes`. [N, H, W, 3]
        wanted: One of `PLACES`; None: by size, the device's where they fit.
        device: On which they would lie whole; one of this process's.

    Returns:
        ({'images': on the device}, None), or ({}, `images`): what goes to the data of a training, and to its feed.
    """
    most = _SHARE * memory_of(device)
    chosen = wanted or ("device" if images.nbytes <= most else "host")
    logger.info(
        "%s: %s of images are %s (%s; of the device's memory, %s may be images)",
        *(stage, _gigabytes(images.nbytes), "on the device" if chosen == "device" else "streamed from the host"),
        *("as run.feed says" if wanted else "by their size", _gigabytes(most)),
    )
    return ({"images": jnp.asarray(np.asarray(images))}, None) if chosen == "device" else ({}, images)


def memory_of(device: jax.Device) -> int:
    """Returns how many bytes a device has for arrays; a CPU what this process may have of the machine's memory."""
    statistics = device.memory_stats() if device.platform != "cpu" else None
    if statistics and "bytes_limit" in statistics:
        return statistics["bytes_limit"]
    return memory.of_machine()


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.3g} GB"


def read_ahead(images: Any, plan: Sequence[np.ndarray], workers: int) -> Iterator[dict[str, np.ndarray]]:
    """Yields batches of images, some of which are being read while one is trained on.

    Each batch is read by itself, so that a training can begin with any: no reader has a state that would have to be
    kept.

    Args:
        images: What is read as an array is, by numbers. uint8 [N, H, W, 3]
        plan: Numbers of the images of each batch, in the order of the batches.
        workers: Processes that decode. With 0, and for an array in any case, threads of this process read.

    Yields:
        'indices' [B] and 'images' uint8 [B, H, W, 3].
    """
    import grain  # takes a second, and most trainings need none of it

    # What is laid over the images stays in this process, which is faster than to send it to every worker.
    source = images.underneath if isinstance(images, Overlay) else images
    workers = 0 if isinstance(source, np.ndarray) else workers
    threads = 1 if workers else min(_THREADS, os.cpu_count() or 1)
    ahead = 1 if workers else max(_AHEAD, threads)
    dataset = grain.MapDataset.source(plan).map(_Read(source)).to_iter_dataset(grain.ReadOptions(threads, ahead))
    if workers:
        if not flags.FLAGS.is_parsed():  # Grain's own are asked for, and where no absl program runs nobody parses them
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(workers, -(-_AHEAD // workers)), _begin_worker)
    iterator = iter(dataset)
    try:
        for batch in iterator:
            if workers:  # out of the memory that is shared with the worker, which is given back by that
                batch = {name: np.array(rows) for name, rows in batch.items()}
            if isinstance(images, Overlay):
                images.lay(batch["images"], batch["indices"])
            yield batch
    finally:
        iterator.close()


class _Read:
    """Reads a batch; goes to the workers by pickle."""

    def __init__(self, images: Any):
        self._images = images

    def __call__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return {"indices": indices, "images": self._images[indices]}


def _begin_worker(number: int, count: int) -> None:
    del number, count
    # Ctrl-C means the training, which still wants the batches of the step under way.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
