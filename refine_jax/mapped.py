"""What code needs that may run inside a mapped axis, on one device's part of a batch; None is the axis of no map."""

from collections.abc import Callable
from typing import TypeVar

import flax.linen as nn
import jax

T = TypeVar("T")
Module = TypeVar("Module", bound=nn.Module)


def on_axis(module: Module, axis_name: str | None) -> Module:
    """Returns the module as it has to be inside the mapped axis, with the statistics of the whole batch."""
    return module if axis_name is None else module.clone(axis_name=axis_name)


def average(tree: T, axis_name: str | None) -> T:
    """Returns the mean over the devices of what each made of its part of the batch; the parts are of one size."""
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def gather(rows: jax.Array, axis_name: str | None) -> jax.Array:
    """Returns the rows of all devices, one's after another's.  [N, ...] -> [devices * N, ...]"""
    return rows if axis_name is None else jax.lax.all_gather(rows, axis_name, tiled=True)


def first_row(count: int, axis_name: str | None) -> jax.Array | int:
    """Returns where this device's rows begin, of all devices' that have `count` each."""
    return 0 if axis_name is None else jax.lax.axis_index(axis_name) * count


def own_rows(rows: T, count: int, axis_name: str | None) -> T:
    """Returns this device's `count` rows of a tree of arrays that has those of all devices."""
    if axis_name is None:
        return rows
    first = first_row(count, axis_name)
    return jax.tree.map(lambda array: jax.lax.dynamic_slice_in_dim(array, first, count), rows)


def draw(sample: Callable[[int], T], count: int, axis_name: str | None) -> T:
    """Draws for every image of the batch, so that each meets the same chance on however many devices.

    Args:
        sample: (n) -> a tree of arrays with n rows.
        count: Images on this device.
        axis_name: Over which the batch is split.

    Returns:
        The rows of this device's images.
    """
    devices = 1 if axis_name is None else jax.lax.axis_size(axis_name)
    return own_rows(sample(devices * count), count, axis_name)
