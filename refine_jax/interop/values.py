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
    _extent(value, MAX_NESTING, MAX_REPETITION * file_size + FREE_REPETITION_BYTES, {})


def _extent(value: Any, levels: int, max_size: int, known: dict[int, _Extent]) -> _Extent:
    if isinstance(value, np.ndarray):
        if value.dtype == bool and (value.view(np.uint8) > 1).any():
            raise TorchFileError("has truth values that are neither 0 nor 1")
        return _Extent(0, 1, value.nbytes)
    if not isinstance(value, dict | list | tuple):
        if not isinstance(value, _PLAIN):
            raise TorchFileError(f"holds {shown(value)} of its own, not as a part of a tensor")
        return _Extent(0, 1, 0)
    if id(value) in known:
        return known[id(value)]
    if not levels:
        raise TorchFileError(f"nests containers more than {MAX_NESTING} deep, or one in itself")
    height, values, size = 0, 1, 0
    for child in value.values() if isinstance(value, dict) else value:
        inner = _extent(child, levels - 1, max_size, known)
        height, values, size = max(height, inner.height), values + inner.values, size + inner.size
    if height >= MAX_NESTING:
        raise TorchFileError(f"nests containers more than {MAX_NESTING} deep")
    if values > MAX_VALUES:
        raise TorchFileError(f"holds over {MAX_VALUES} values, shared ones counted at each place: a memo bomb")
    if size > max_size:
        raise TorchFileError(f"has tensors that take {size} bytes written out, and only {max_size} are allowed")
    known[id(value)] = _Extent(height + 1, values, size)
    return known[id(value)]
