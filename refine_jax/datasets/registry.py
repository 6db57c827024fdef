"""The data sets, by name."""

import os
from collections.abc import Callable

from refine_jax.datasets import cifar10, digits
from refine_jax.datasets.images import Dataset
from refine_jax.errors import choose

DATASETS: dict[str, Callable[..., Dataset]] = {
    "cifar10": cifar10.load,
    "digits": digits.load,
}


def names() -> tuple[str, ...]:
    """Returns the names that `load` takes."""
    return tuple(DATASETS)


def load(
    name: str, *, data_dir: str | os.PathLike | None = None, cache_dir: str | os.PathLike | None = None
) -> Dataset:
    """Returns a data set, its images decoded.

    Args:
        name: One of `names()`.
        data_dir: Where its files lie; None: where they usually do.
        cache_dir: Where decoded images are kept; None: see `datasets.cache.directory`.

    Raises:
        SettingError: Unknown name, or a `data_dir` that cannot be one.
        DataError: The files are missing, incomplete or damaged; what was looked for, where, and what mends it.
    """
    return DATASETS[choose("dataset.name", name, DATASETS)](data_dir=data_dir, cache_dir=cache_dir)
