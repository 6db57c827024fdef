"""What the names in a torch.save file mean here: tensors, storages, and the few containers and NumPy values."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from refine_jax.interop.torch_pickle import Budget, Builder, key
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
# Names of storages, and of tensors in files made before PyTorch 0.4.
_STORAGES = {
    "Double": "float64",
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "ComplexFloat": "complex64",
    "ComplexDouble": "complex128",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
}
_MAX_DIMENSIONS = 32
_NUMBERS = re.compile(r"[<|=]?([biufc])([1248]|16)")
# Modules whose names stand in a pickle only to run something when it is opened.
_RUN_CODE = (
    "__builtin__ __builtins__ _operator _pickle _posixsubprocess asyncio bdb builtins cloudpickle code codecs codeop commands "
    "concurrent copy_reg copyreg ctypes dill functools importlib imp inspect itertools joblib marshal multiprocessing nt "
    "operator os pdb pickle pip pkgutil platform posix profile pty pydoc requests runpy shutil signal socket subprocess "
    "sys tempfile timeit torch.hub torch.load torch.storage._load_from_bytes types urllib webbrowser"
).split()
_RUNNERS = tuple(f"{runner}." for runner in _RUN_CODE)


class Storage(NamedTuple):
    """The memory that tensors share.

    Attributes:
        data: Its bytes, uint8.
        dtype: What they hold; uint8 where the tensors say themselves.
    """

    data: np.ndarray
    dtype: np.dtype


class StorageType(NamedTuple):
    """The class of a storage, or of a tensor, in the file."""

    dtype: np.dtype


class _Class(NamedTuple):
    """A class that stands only where another name takes it as an argument."""

    name: str


def find(module: str, name: str, following: Callable[[], bytes]) -> Any:
    """Returns what a name in the file means.

    Args:
        module: The module that the file names.
        name: The name in it.
        following: Gives bytes of the file behind the name, for the message.

    Raises:
        TorchFileError: The name is none of those allowed.
    """
    if f"{module}.{name}" in _NAMES:
        return _NAMES[f"{module}.{name}"]
    named = shown(f"{module}.{name}").strip("'\"")
    if f"{module}.{name}.".startswith(_RUNNERS):
        raise TorchFileError(
            f"names {named}, which no weights need and by which a pickle can run code when it is opened: do not open it "
            "with torch.load or pickle, and ask its maker for a state dict or safetensors"
        )
    if module.startswith("torch.nn.") or b"torch.nn.modules" in following():
        raise TorchFileError(
            f"is a whole pickled module (it names {named}), which cannot be read without running its program: in the "
            "program that made it, torch.save(model.state_dict(), path)"
        )
    raise TorchFileError(
        f"names {named}, and only tensors, dicts, lists, tuples, sets, numbers, strings, bytes and NumPy arrays of "
        "numbers are read: in the program that made it, save it without, as torch.save(model.state_dict(), path)"
    )


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


def _is(value: Any, *allowed: str | bytes) -> bool:
    """Returns whether a value from the file is one of these; arrays are never compared."""
    return isinstance(value, str | bytes) and value in allowed


def storage_id(value: Any, parts: int) -> tuple[Any, ...]:
    """Returns the parts of a storage's persistent id: its type's dtype, key, location, number of elements, ..."""
    if not isinstance(value, tuple) or len(value) != parts + 1 or not _is(value[0], "storage", b"storage"):
        raise TorchFileError("refers to something outside its pickle that is no storage")
    if not isinstance(value[1], StorageType) or not isinstance(value[2], str):
        raise TorchFileError(f"has a storage of the type {shown(value[1])} with the key {shown(value[2])}")
    return (value[1].dtype, *value[2:])


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
    strides = tuple(step * dtype.itemsize if n > 1 else 0 for n, step in zip(size, stride, strict=True))
    if math.prod(size) == 1:
        strides = (dtype.itemsize,) * len(size)
    return np.ndarray(size, dtype, storage.data, offset * dtype.itemsize, strides)


def set_state(value: Any, state: Any, budget: Budget) -> None:
    """Gives a NumPy array its content; what an OrderedDict and a dtype carry besides is left out.

    Raises:
        TorchFileError: The value takes no state, or not this one.
    """
    if type(value) is dict:
        return
    if not isinstance(state, tuple):
        raise TorchFileError(f"gives {shown(value)} {shown(state)} as its state, which is not read")
    if isinstance(value, np.dtype) and len(state) > 1 and _is(state[1], "<", "|", "="):
        return
    if type(value) is not np.ndarray or value.shape != (0,) or value.base is not None:
        raise TorchFileError(f"gives {shown(value)} a state of its own, which is not read")
    match state:
        case (int(), tuple() as shape, np.dtype() as dtype, bool() as fortran, bytes() | str() as data):
            # Files of Python 2 have bytes that may happen to be text.
            data = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
            size = math.prod(checked_shape(shape)) * dtype.itemsize
            if size != len(data):
                raise TorchFileError(f"has a NumPy array of {len(data)} bytes where its shape needs {size}")
            budget.spend(size)
            value.__setstate__((1, shape, dtype, fortran, data))
        case _:
            raise TorchFileError("has a NumPy array of something else than numbers")


def _rebuild_tensor_v2(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, metadata: Any = None
) -> np.ndarray:
    _check_metadata(metadata)
    return tensor(storage, offset, size, stride)


def _rebuild_tensor_v3(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, dtype: Any, metadata: Any = None
) -> np.ndarray:
    _check_metadata(metadata)
    if not isinstance(dtype, np.dtype):
        raise TorchFileError(f"has a tensor of the type {shown(dtype)}")
    return tensor(storage, offset, size, stride, dtype)


def _check_metadata(metadata: Any) -> None:
    if metadata is not None and not (type(metadata) is dict and not any(v is True for v in metadata.values())):
        raise TorchFileError(
            "has a tensor that is the conjugate or the negative of what is stored: in the program that made it, "
            "resolve_conj() and resolve_neg() before saving"
        )


def _rebuild_parameter(data: Any, requires_grad: Any = True, hooks: Any = None, state: Any = None) -> np.ndarray:
    if not isinstance(data, np.ndarray):
        raise TorchFileError(f"has {shown(data)} as a parameter")
    return data


def _rebuild_from_type(function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    """Builds a tensor with attributes of its own, without them."""
    kinds = (_NAMES["torch.Tensor"], _NAMES["torch.nn.parameter.Parameter"])
    if all(function is not build for build in _REBUILD.values()) or all(kind is not allowed for allowed in kinds):
        raise TorchFileError("has a tensor of a class of its own")
    return function(arguments)


def _ordered_dict(pairs: Any = ()) -> dict[Any, Any]:
    if not isinstance(pairs, list | tuple) or any(not isinstance(p, list | tuple) or len(p) != 2 for p in pairs):
        raise TorchFileError(f"fills an OrderedDict with {shown(pairs)}")
    return {key(name): value for name, value in pairs}


def _counter(counts: Any = None) -> dict[Any, Any]:
    if counts is not None and type(counts) is not dict:
        raise TorchFileError(f"fills a Counter with {shown(counts)}")
    return dict(counts or {})


def _set(items: Any = ()) -> set[Any]:
    if not isinstance(items, list | tuple):
        raise TorchFileError(f"fills a set with {shown(items)}")
    return {key(item) for item in items}


def _size(items: Any = ()) -> tuple[int, ...]:
    if not isinstance(items, list | tuple):
        raise TorchFileError(f"has {shown(items)} as a torch.Size")
    return tuple(whole(item) for item in items)


def _device(kind: Any, index: Any = None) -> str:
    if not isinstance(kind, str) or (index is not None and type(index) is not int):
        raise TorchFileError(f"has {shown(kind)} as a torch.device")
    return kind if index is None else f"{kind}:{index}"


def _bytes(items: Any = ()) -> bytes:
    if not isinstance(items, tuple) or items:
        raise TorchFileError(f"makes bytes of {shown(items)}")
    return b""


def _encode(text: Any, encoding: Any) -> bytes:
    """Returns the bytes that pickle's protocol 2 writes as text."""
    if not isinstance(text, str) or not _is(encoding, "latin1", "latin-1"):
        raise TorchFileError(f"encodes {shown(text)} as {shown(encoding)}")
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError as error:
        raise TorchFileError(f"encodes {shown(text)} as latin1") from error


def _complex(real: Any, imaginary: Any) -> complex:
    if not isinstance(real, int | float) or not isinstance(imaginary, int | float):
        raise TorchFileError(f"makes a complex number of {shown(real)} and {shown(imaginary)}")
    try:
        return complex(real, imaginary)
    except OverflowError as error:
        raise TorchFileError(f"makes a complex number of {shown(real)} and {shown(imaginary)}") from error


def _numpy_dtype(name: Any, align: Any = False, copy: Any = True) -> np.dtype:
    match = _NUMBERS.fullmatch(name) if isinstance(name, str) else None
    try:
        if match:
            return np.dtype(match[1] + match[2])
    except TypeError:  # As 'c4'.
        pass
    raise TorchFileError(f"has a NumPy array of the type {shown(name)}: only numbers are read")


def _numpy_array(kind: Any, shape: Any, code: Any) -> np.ndarray:
    """Returns the array that its state is yet to fill."""
    if kind is not _NAMES["numpy.ndarray"] or not isinstance(shape, tuple) or [type(n) for n in shape] != [int]:
        raise TorchFileError("has a NumPy array of a class of its own")
    return np.empty(0, np.int8)


def _numpy_scalar(dtype: Any, data: Any) -> np.generic:
    data = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    if not isinstance(dtype, np.dtype) or not isinstance(data, bytes) or len(data) != dtype.itemsize:
        raise TorchFileError(f"has {shown(data)} as a NumPy number of the type {shown(dtype)}")
    return np.frombuffer(data, dtype)[0]


_REBUILD = {
    name: Builder(name, build)
    for name, build in {
        "torch._utils._rebuild_tensor": tensor,
        "torch._utils._rebuild_tensor_v2": _rebuild_tensor_v2,
        "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
        "torch._utils._rebuild_parameter": _rebuild_parameter,
        "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    }.items()
}
_NAMES: dict[str, Any] = {
    name: Builder(name, build)
    for name, build in {
        "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
        "torch.nn.parameter.Parameter": _rebuild_parameter,
        "torch.Size": _size,
        "torch.device": _device,
        "collections.OrderedDict": _ordered_dict,
        "collections.Counter": _counter,
        "_codecs.encode": _encode,
        **{
            f"{module}.{name}": build
            for module in ("builtins", "__builtin__")
            for name, build in {"set": _set, "bytes": _bytes, "complex": _complex}.items()
        },
        "numpy.dtype": _numpy_dtype,
        **{
            f"numpy.{core}.multiarray.{name}": build
            for core in ("core", "_core")
            for name, build in {"_reconstruct": _numpy_array, "scalar": _numpy_scalar}.items()
        },
    }.items()
}
_NAMES |= _REBUILD
_NAMES |= {name: _Class(name) for name in ("torch.Tensor", "numpy.ndarray")}
_NAMES |= {f"torch.{name}": dtype for name, dtype in DTYPES.items()}
_NAMES |= {
    f"{module}.{prefix}{what}": StorageType(DTYPES[dtype])
    for module in ("torch", "torch.cuda")
    for what in ("Storage", "Tensor")
    for prefix, dtype in _STORAGES.items()
}
_NAMES["torch.storage.UntypedStorage"] = StorageType(DTYPES["uint8"])
