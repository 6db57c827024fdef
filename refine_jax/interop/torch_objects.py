"""What the names in the pickle of a torch.save file mean: a table, and what becomes of everything else."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from refine_jax.interop.pickle_machine import Budget, Builder, key
from refine_jax.interop.torch_tensors import DTYPES, StorageType, checked_shape, is_one_of, tensor, whole
from refine_jax.interop.untrusted import TorchFileError, shown

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
# NumPy's own types by their names in a pickle, as 'f4'.
_NUMBERS = {dtype.str[1:]: dtype for dtype in DTYPES.values() if dtype.isbuiltin == 1}
# Modules whose names stand in a pickle only to run something when it is opened.
_RUNS_CODE = re.compile(
    r"(__builtin__|__builtins__|_operator|_pickle|_posixsubprocess|asyncio|bdb|builtins|cloudpickle|code|codecs|codeop"
    r"|commands|concurrent|copy_reg|copyreg|ctypes|dill|functools|importlib|imp|inspect|itertools|joblib|marshal"
    r"|multiprocessing|nt|operator|os|pdb|pickle|pip|pkgutil|platform|posix|profile|pty|pydoc|requests|runpy|shutil"
    r"|signal|socket|subprocess|sys|tempfile|timeit|torch\.hub|torch\.load|torch\.storage\._load_from_bytes|types"
    r"|urllib|webbrowser)(\.|$)"
)


@dataclass(frozen=True, eq=False)
class _Class:
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
    if _RUNS_CODE.match(f"{module}.{name}"):
        raise TorchFileError(
            f"names {named}, which no weights need and by which a pickle can run code when it is opened: do not "
            "open it with torch.load or pickle, and ask its maker for a state dict or safetensors"
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


def set_state(value: Any, state: Any, budget: Budget) -> None:
    """Gives a NumPy array its content; what an OrderedDict, a Namespace and a dtype carry is left out.

    Raises:
        TorchFileError: The value takes no state, or not this one.
    """
    if type(value) is dict:
        return
    if not isinstance(state, tuple):
        raise TorchFileError(f"gives {shown(value)} {shown(state)} as its state, which is not read")
    if isinstance(value, np.dtype) and len(state) > 1 and is_one_of(state[1], "<", "|", "="):
        return
    if type(value) is not np.ndarray or value.shape != (0,) or value.base is not None:
        raise TorchFileError(f"gives {shown(value)} a state of its own, which is not read")
    match state:
        case (int(), tuple() as shape, np.dtype() as dtype, bool() as fortran, bytes() | str() as data):
            # Files of Python 2 have bytes that may happen to be text.
            if isinstance(data, str):
                budget.spend(4 * len(data))
                data = data.encode("utf-8", "surrogatepass")
            size = math.prod(checked_shape(shape)) * dtype.itemsize
            if size != len(data):
                raise TorchFileError(f"has a NumPy array of {len(data)} bytes where its shape needs {size}")
            budget.spend(size)
            value.__setstate__((1, shape, dtype, fortran, data))  # type: ignore[arg-type]
        case _:
            raise TorchFileError("has a NumPy array of something else than numbers")


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any) -> np.ndarray:
    return tensor(storage, offset, size, stride)


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


def _rebuild_from_type(budget: Budget, function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    """Builds a tensor with attributes of its own, without them."""
    kinds = (_NAMES["torch.Tensor"], _NAMES["torch.nn.parameter.Parameter"])
    if all(function is not build for build in _REBUILD.values()) or all(kind is not allowed for allowed in kinds):
        raise TorchFileError("has a tensor of a class of its own")
    return function(arguments, budget)


def _ordered_dict(budget: Budget, pairs: Any = ()) -> dict[Any, Any]:
    if not isinstance(pairs, list | tuple) or any(not isinstance(p, list | tuple) or len(p) != 2 for p in pairs):
        raise TorchFileError(f"fills an OrderedDict with {shown(pairs)}")
    return {key(name, budget): value for name, value in pairs}


def _counter(budget: Budget, counts: Any = None) -> dict[Any, Any]:
    if counts is not None and type(counts) is not dict:
        raise TorchFileError(f"fills a Counter with {shown(counts)}")
    return {key(name, budget): value for name, value in (counts or {}).items()}


def _namespace() -> dict[Any, Any]:
    """Returns nothing of an argparse.Namespace: the options of a training, beside its weights."""
    return {}


def _set(budget: Budget, items: Any = ()) -> set[Any]:
    if not isinstance(items, list | tuple):
        raise TorchFileError(f"fills a set with {shown(items)}")
    return {key(item, budget) for item in items}


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
    if not isinstance(text, str) or not is_one_of(encoding, "latin1", "latin-1"):
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
    if not isinstance(name, str) or name not in _NUMBERS:
        raise TorchFileError(f"has a NumPy array of the type {shown(name)}: only numbers are read")
    return _NUMBERS[name]


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


def _builders(functions: dict[str, Callable[..., Any]], *, has_keys: bool = False) -> dict[str, Builder]:
    return {name: Builder(name, build, has_keys=has_keys) for name, build in functions.items()}


_REBUILD = _builders(
    {
        "torch._utils._rebuild_tensor": _rebuild_tensor,
        "torch._utils._rebuild_tensor_v2": _rebuild_tensor_v2,
        "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
        "torch._utils._rebuild_parameter": _rebuild_parameter,
        "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    }
)
_NAMES: dict[str, Any] = {
    **_REBUILD,
    **_builders(
        {
            "torch.nn.parameter.Parameter": _rebuild_parameter,
            "torch.Size": _size,
            "torch.device": _device,
            "argparse.Namespace": _namespace,
            "_codecs.encode": _encode,
            "numpy.dtype": _numpy_dtype,
        }
    ),
    **_builders(
        {
            "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
            "collections.OrderedDict": _ordered_dict,
            "collections.Counter": _counter,
        },
        has_keys=True,
    ),
    "torch.Tensor": _Class("torch.Tensor"),
    "torch.storage.UntypedStorage": StorageType(DTYPES["uint8"]),
    "numpy.ndarray": _Class("numpy.ndarray"),
    **{f"torch.{name}": dtype for name, dtype in DTYPES.items()},
}
# Python 3 writes the names of Python 2; NumPy 2 moved its own.
for _module in ("builtins", "__builtin__"):
    _NAMES |= _builders({f"{_module}.bytes": _bytes, f"{_module}.complex": _complex})
    _NAMES |= _builders({f"{_module}.set": _set}, has_keys=True)
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _NAMES |= _builders({f"{_module}._reconstruct": _numpy_array, f"{_module}.scalar": _numpy_scalar})
for _module in ("torch", "torch.cuda"):
    for _prefix, _dtype in _STORAGES.items():
        _NAMES[f"{_module}.{_prefix}Storage"] = _NAMES[f"{_module}.{_prefix}Tensor"] = StorageType(DTYPES[_dtype])
