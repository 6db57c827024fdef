"""A run whose data set and networks are small enough to be compiled and trained at once."""

import functools
import shutil

import flax.linen as nn
import numpy as np
import pytest

from refine_jax import pipeline, report_stage, settings
from refine_jax.datasets import registry as datasets
from refine_jax.datasets.images import Dataset, Split
from refine_jax.networks import registry as networks

K, SIDE = 4, 16


class Tiny(nn.Module):
    """A linear classifier of the image at quarter size."""

    num_classes: int
    width: int = 1

    @nn.compact
    def __call__(self, images, train=False):
        small = nn.avg_pool(images, (4, 4), strides=(4, 4))
        return nn.Dense(self.num_classes)(small.reshape(images.shape[0], -1))


def split(count, seed):
    """Images whose class is the quarter that is bright."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, K, count).astype(np.int32)
    images = rng.integers(0, 90, (count, SIDE, SIDE, 3))
    for image, label in zip(images, labels, strict=True):
        top, left = divmod(int(label), 2)
        image[8 * top : 8 * top + 8, 8 * left : 8 * left + 8] += 120
    return Split(images.astype(np.uint8), labels)


@pytest.fixture(autouse=True, name="tiny")
def tiny_fixture(monkeypatch):
    made = Dataset("made", split(96, 0), split(50, 1), tuple("abcd"), (0.5,) * 3, (0.25,) * 3)
    monkeypatch.setitem(networks.NETWORKS, "tiny", functools.partial(Tiny))
    monkeypatch.setitem(datasets.DATASETS, "made", lambda **_: made)
    for module, name in ((pipeline, "export_defenses"), (report_stage, "write")):  # take seconds; have their own tests
        monkeypatch.setattr(module, name, lambda run: None)
    return made


EXPORT_DEFENSES, WRITE_REPORT = pipeline.export_defenses, report_stage.write


def config(**changed):
    """A configuration; `changed` has dots as two underscores."""
    small = settings.default()
    small.dataset.name, small.victim.name = "made", "tiny"
    small.victim.epochs, small.victim.batch_size = 4, 16
    small.defense.epochs, small.defense.batch_size, small.defense.width, small.defense.depth = 1, 32, 2, 1
    small.run.log_every = 1
    for name, value in changed.items():
        section, field = name.split("__") if "__" in name else (None, name)
        setattr(small[section] if section else small, field, value)
    return small


@pytest.fixture(scope="module", name="folder")
def folder_fixture(tmp_path_factory):
    return tmp_path_factory.mktemp("run") / "work"


@pytest.fixture(name="done")
def done_fixture(folder):
    """A whole run, made once; tests that change it work on a copy."""
    return pipeline.run(config(), str(folder))


def contents(folder):
    """Every path below, with when it was changed."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def figures(results):
    """What was measured of the victim alone, but for how long it took."""
    return {name: value for name, value in results["no_defense"].items() if name != "milliseconds_per_image"}
