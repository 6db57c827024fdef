"""The safetensors format: a JSON header that says where each tensor stands, and the tensors.

References:
    https://huggingface.co/docs/safetensors/index#format
"""

import json
import math
from typing import Any

import numpy as np

from refine_jax.interop.torch_tensors import DTYPES, checked_shape, whole
from refine_jax.interop.untrusted import MAX_HEADER_BYTES, TorchFileError, UntrustedFile, shown

_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "C64": "complex64",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}


def is_safetensors(start: bytes) -> bool:
    """Returns whether a file that begins with these bytes, nine or more, may be a safetensors file."""
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 1 << 40


def load(file: UntrustedFile) -> dict[str, np.ndarray]:
    """Returns the tensors of a file by name; the header's `__metadata__` is left out.

    Raises:
        TorchFileError: The file is damaged, or tensors overlap or lie outside it.
    """
    length = int.from_bytes(file.read(0, 8), "little")
    if length > min(MAX_HEADER_BYTES, file.size - 8):
        raise TorchFileError(
            f"has a header of {length} bytes, and there may be {min(MAX_HEADER_BYTES, file.size - 8)}: copy or "
            "download it again"
        )
    try:
        header = json.loads(file.read(8, length).decode(), object_pairs_hook=_without_repetition)
    except (ValueError, RecursionError) as error:
        raise TorchFileError(f"has a header that is not JSON ({shown(str(error))})") from error
    if not isinstance(header, dict):
        raise TorchFileError(f"has {shown(header)} as its header")
    header.pop("__metadata__", None)
    described = [(*_described(name, value), name) for name, value in header.items()]
    described.sort(key=lambda entry: entry[:2])
    position = 0
    for begin, end, _, _, name in described:
        if begin != position:
            raise TorchFileError(f"has a tensor {shown(name)} at {begin} that overlaps another or leaves a gap")
        position = end
    if position != file.size - 8 - length:
        raise TorchFileError(
            f"holds {file.size - 8 - length} bytes of tensors, and its header describes {position}: copy or "
            "download it again"
        )
    arrays = {
        name: file.array(8 + length + begin, end - begin).view(dtype).reshape(shape)
        for begin, end, dtype, shape, name in described
    }
    return {name: arrays[name] for name in header}


def _described(name: str, value: Any) -> tuple[int, int, np.dtype, tuple[int, ...]]:
    """Returns begin, end, type and shape of a tensor."""
    match value:
        case {"dtype": str() as dtype, "shape": list() as shape, "data_offsets": [begin, end]} if len(value) == 3:
            pass
        case _:
            raise TorchFileError(f"has a tensor {shown(name)} without just dtype, shape and data_offsets")
    if dtype not in _DTYPES:
        raise TorchFileError(f"has a tensor {shown(name)} of the type {shown(dtype)}; allowed: {', '.join(_DTYPES)}")
    kind, lengths = DTYPES[_DTYPES[dtype]], checked_shape(shape)
    size = math.prod(lengths) * kind.itemsize
    if whole(end) - whole(begin) != size:
        raise TorchFileError(f"has a tensor {shown(name)} of {end - begin} bytes, and its shape needs {size}")
    return begin, end, kind, lengths


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise ValueError("a key stands in it twice")
    return unique
