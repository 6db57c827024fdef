"""What may leave a file from a stranger: plain values, whose nesting and size a reader of them can bear."""

from typing import Any, NamedTuple

import numpy as np

from refine_jax.interop.untrusted import (
    FREE_REPETITION_BYTES,
    MAX_NESTING,
    MAX_REPETITION,
    MAX_VALUES,
    TorchFileError,
    shown,
)

_PLAIN = (bool, int, float, complex, str, bytes, set, type(None), np.generic, np.dtype)


class _Extent(NamedTuple):
    """How far a value reaches; what stands in two places counts twice.

    Attributes:
        height: Containers inside one another.
        values: Values in it, in the containers in it, and so on.
        size: Bytes of the arrays among them.
    """

    height: int
    values: int
    size: int


def check(value: Any, file_size: int) -> None:
    """Checks what was read from a file of `file_size` bytes.

    A few bytes can make lists of lists that take years to walk through, a list that is its own element, or a
    tensor that repeats one number more often than fits into memory. Here each container is walked through once.

    Args:
        value: Nested dicts, lists and tuples.
        file_size: In bytes.

    Raises:
        TorchFileError: A value is not plain, or a limit is passed.
    """
    arrays: dict[int, np.ndarray] = {}
    _extent(value, MAX_NESTING, MAX_REPETITION * file_size + FREE_REPETITION_BYTES, {}, arrays)
    # Looked into once each, and only now that all of them together are known to be bounded.
    for array in arrays.values():
        if array.dtype == bool and array.view(np.uint8).max(initial=0) > 1:
            raise TorchFileError("has truth values that are neither 0 nor 1")


def _extent(
    value: Any, levels: int, max_size: int, known: dict[int, _Extent], arrays: dict[int, np.ndarray]
) -> _Extent:
    if isinstance(value, np.ndarray):
        arrays[id(value)] = value
        return _within(_Extent(0, 1, value.nbytes), max_size)
    if not isinstance(value, dict | list | tuple):
        if not isinstance(value, _PLAIN):
            raise TorchFileError(f"holds {shown(value)} of its own, not as a part of a tensor")
        return _Extent(0, 1, 0)
    if id(value) in known:
        return known[id(value)]
    if not levels:
        raise TorchFileError(f"nests containers more than {MAX_NESTING} deep, or one in itself")
    found = _Extent(0, 1, 0)
    for child in value.values() if isinstance(value, dict) else value:
        inner = _extent(child, levels - 1, max_size, known, arrays)
        together = _Extent(max(found.height, inner.height), found.values + inner.values, found.size + inner.size)
        found = _within(together, max_size)  # at each child, since the rest may be without end
    known[id(value)] = found._replace(height=found.height + 1)
    return known[id(value)]


def _within(extent: _Extent, max_size: int) -> _Extent:
    """Returns an extent that passes no limit."""
    if extent.height >= MAX_NESTING:
        raise TorchFileError(f"nests containers more than {MAX_NESTING} deep")
    if extent.values > MAX_VALUES:
        raise TorchFileError(f"holds over {MAX_VALUES} values, shared ones counted at each place: a memo bomb")
    if extent.size > max_size:
        raise TorchFileError(f"has tensors that take {extent.size} bytes written out, and only {max_size} are allowed")
    return extent
