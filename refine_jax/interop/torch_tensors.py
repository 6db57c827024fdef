"""Tensors and storages of a torch.save file: their types, and views that lie inside their storage."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from refine_jax.interop.untrusted import TorchFileError, shown

DTYPES: dict[str, np.dtype] = {
    name: np.dtype(dtype)
    for name, dtype in {
        "float64": np.float64,
        "float32": np.float32,
        "float16": np.float16,
        "bfloat16": ml_dtypes.bfloat16,
        "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
        "float8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
        "float8_e5m2": ml_dtypes.float8_e5m2,
        "float8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
        "float8_e8m0fnu": ml_dtypes.float8_e8m0fnu,
        "complex64": np.complex64,
        "complex128": np.complex128,
        "int64": np.int64,
        "int32": np.int32,
        "int16": np.int16,
        "int8": np.int8,
        "uint64": np.uint64,
        "uint32": np.uint32,
        "uint16": np.uint16,
        "uint8": np.uint8,
        "bool": np.bool_,
    }.items()
}
_MAX_DIMENSIONS = 32


# No tuples: those are values of the file.
@dataclass(frozen=True, eq=False)
class Storage:
    """The memory that tensors share.

    Attributes:
        data: Its bytes, uint8.
        dtype: What they hold; uint8 where the tensors say themselves.
    """

    data: np.ndarray
    dtype: np.dtype


@dataclass(frozen=True, eq=False)
class StorageType:
    """The class of a storage, or of a tensor, in the file."""

    dtype: np.dtype


def declared(numel: Any, dtype: np.dtype) -> int:
    """Returns the bytes of a storage of `numel` elements."""
    return whole(numel) * dtype.itemsize


def whole(value: Any) -> int:
    """Returns a size from the file, if it is a number from 0."""
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise TorchFileError(f"has {shown(value)} where a size belongs")
    return value


def checked_shape(shape: Sequence[Any]) -> tuple[int, ...]:
    """Returns a shape from the file, if NumPy has arrays of it."""
    if len(shape) > _MAX_DIMENSIONS:
        raise TorchFileError(f"has an array of {len(shape)} axes, and {_MAX_DIMENSIONS} are allowed")
    if math.prod(max(whole(length), 1) for length in shape) >= 1 << 48:
        raise TorchFileError(f"has an array of shape {tuple(shape)}")
    return tuple(shape)


def is_one_of(value: Any, *allowed: str | bytes) -> bool:
    """Returns whether a value from the file is one of these; arrays are never compared."""
    return isinstance(value, str | bytes) and value in allowed


def storage_id(value: Any, parts: int) -> tuple[Any, ...]:
    """Returns the parts of a storage's persistent id: its type's dtype, key, location, number of elements, ..."""
    if not isinstance(value, tuple) or len(value) != parts + 1 or not is_one_of(value[0], "storage", b"storage"):
        raise TorchFileError("refers to something outside its pickle that is no storage")
    if not isinstance(value[1], StorageType) or not isinstance(value[2], str):
        raise TorchFileError(f"has a storage of the type {shown(value[1])} with the key {shown(value[2])}")
    return (value[1].dtype, *value[2:])


def refuse_persistent(value: Any) -> Any:
    """Refuses the persistent ids of a pickle that has no tensors."""
    raise TorchFileError("refers to something outside its pickle that is no storage")


def tensor(storage: Any, offset: Any, size: Any, stride: Any, dtype: np.dtype | None = None) -> np.ndarray:
    """Returns a view on a storage.

    Args:
        storage: The storage.
        offset: Of the first element, in elements.
        size: Length of each axis.
        stride: Elements from one to the next on each axis.
        dtype: What the storage is taken to hold, its own if None.

    Raises:
        TorchFileError: A part of it lies outside the storage.
    """
    if not isinstance(storage, Storage) or not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise TorchFileError(f"has a tensor of {shown(storage)} with size {shown(size)} and stride {shown(stride)}")
    if len(size) != len(stride):
        raise TorchFileError(f"has a tensor of {len(size)} sizes and {len(stride)} strides")
    dtype = storage.dtype if dtype is None else dtype
    offset, size, stride = whole(offset), checked_shape(size), tuple(map(whole, stride))
    length = len(storage.data) // dtype.itemsize
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 in size:
        return np.empty(size, dtype)
    if last >= length:
        raise TorchFileError(f"has a tensor that ends at element {last} of a storage of {length}")
    # A step on an axis of one element leads nowhere, and may be too large for NumPy.
    strides = tuple(step * dtype.itemsize if n > 1 else 0 for n, step in zip(size, stride, strict=True))
    return np.ndarray(size, dtype, storage.data, offset * dtype.itemsize, strides)
