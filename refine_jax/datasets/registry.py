"""The data sets, by name."""

import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any

from refine_jax.datasets import cifar10, digits, folder, imagenet50
from refine_jax.datasets.images import Dataset
from refine_jax.errors import SettingError, choose

DATASETS: dict[str, Callable[..., Dataset]] = {
    "cifar10": cifar10.load,
    "digits": digits.load,
    "folder": folder.load,
    "imagenet50": imagenet50.load,
}


def names() -> tuple[str, ...]:
    """Returns the names that `load` takes."""
    return tuple(DATASETS)


def options(name: str) -> tuple[str, ...]:
    """Returns the options that a data set takes besides its directories: keyword arguments of its `load`."""
    parameters = inspect.signature(DATASETS[choose("dataset.name", name, DATASETS)]).parameters.values()
    named = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    return tuple(option for option in named if option not in ("data_dir", "cache_dir"))


def check_options(name: str, given: Mapping[str, Any]) -> None:
    """Refuses an option that is given and that the data set does not take.

    Args:
        name: One of `names()`.
        given: Option to value; None stands for one that is left open.

    Raises:
        SettingError: Unknown name, or the first such option, with the data sets that take it.
    """
    taken = options(name)
    for option, value in given.items():
        if value is not None and option not in taken:
            others = [other for other in DATASETS if option in options(other)]
            allowed = f"only with {' or '.join(others)}" if others else f"nothing: there is no option {option!r}"
            raise SettingError(f"dataset.{option}", value, f"{allowed}; dataset.name is {name!r}")


def load(
    name: str, *, data_dir: str | os.PathLike | None = None, cache_dir: str | os.PathLike | None = None, **given: Any
) -> Dataset:
    """Returns a data set, its images decoded.

    Args:
        name: One of `names()`.
        data_dir: Where its files lie; None: where they usually do.
        cache_dir: Where decoded images are kept; None: see `datasets.cache.directory`.
        **given: Options of the data set, see `options`; None for one that is left open.

    Raises:
        SettingError: Unknown name, an option that the data set does not take, or a value that cannot be one.
        DataError: The files are missing, incomplete or damaged; what was looked for, where, and what mends it.
    """
    check_options(name, given)
    taken = {option: value for option, value in given.items() if value is not None}
    return DATASETS[name](data_dir=data_dir, cache_dir=cache_dir, **taken)
