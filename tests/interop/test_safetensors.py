"""safetensors files: those of its own library, and those that lie."""

import json
import struct

import numpy as np
import pytest

from refine_jax.interop import torch_file
from tests.goldens import torch_saved
from tests.interop.test_torch_file import assert_same, write

ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def saved(header, data=bytes(8), length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def test_a_file_of_its_own_library():
    expected = {
        "scalar": np.array(3, np.int64),
        "weight": torch_saved.numbers(np.float32, (2, 3)),
        "none": torch_saved.numbers(np.float16, (0, 2)),
    }
    loaded = torch_file.load(torch_saved.FILES / "weights.safetensors")
    assert_same(dict(sorted(loaded.items())), dict(sorted(expected.items())))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("F64", "float64"), ("F16", "float16"), ("BF16", "bfloat16"), ("F8_E4M3", "float8_e4m3fn"), ("U8", "uint8"),
     ("F8_E5M2", "float8_e5m2"), ("I16", "int16"), ("U16", "uint16"), ("I32", "int32"), ("U32", "uint32"),
     ("U64", "uint64"), ("I64", "int64"), ("I8", "int8"), ("BOOL", "bool"), ("C64", "complex64")],
)  # fmt: skip
def test_every_type(tmp_path, name, dtype):
    expected = torch_saved.numbers(torch_saved.DTYPES[dtype], (2, 2))
    entry = {"dtype": name, "shape": [2, 2], "data_offsets": [0, expected.nbytes]}
    assert_same(torch_file.load(write(tmp_path, saved({"a": entry}, expected.tobytes()))), {"a": expected})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (saved({"a": ONE}, length=1 << 30), "header of 1073741824 bytes, and there may be"),
        (saved({"a": ONE}, length=1 << 62), "is no file of torch.save and no safetensors file"),
        (saved({"a": ONE}, b""), "holds 0 bytes of tensors, and its header describes 8"),
        (saved({"a": ONE}, bytes(9)), "holds 9 bytes of tensors, and its header describes 8"),
        (saved({"a": ONE, "b": ONE}), "'b' at 0 that overlaps another"),
        (saved({"a": ONE, "b": ONE | {"data_offsets": [4, 12]}}, bytes(12)), "'b' at 4 that overlaps another"),
        (saved({"a": ONE | {"data_offsets": [4, 12]}}, bytes(12)), "'a' at 4 that overlaps another or leaves a gap"),
        (saved({"a": ONE | {"data_offsets": [8, 0]}}), "'a' of -8 bytes"),
        (saved({"a": ONE | {"data_offsets": [-8, 0]}}), "has -8 where a size belongs"),
        (saved({"a": ONE | {"data_offsets": [0, 8.0]}}), "has 8.0 where a size belongs"),
        (saved({"a": ONE | {"data_offsets": [0, True]}}), "has True where a size belongs"),
        (saved({"a": ONE | {"shape": [1 << 40, 1 << 40]}}), "has an array of shape"),
        (saved({"a": ONE | {"shape": [3]}}), "of 8 bytes, and its shape needs 12"),
        (saved({"a": ONE | {"shape": 2}}), "'a' without just dtype, shape and data_offsets"),
        (saved({"a": ONE | {"more": 1}}), "'a' without just dtype, shape and data_offsets"),
        (saved({"a": ONE | {"dtype": "F99"}}), "of the type 'F99'; allowed: F64, F32"),
        (saved(b'{"a":{},"a":{}}'), "a key stands in it twice"),
        (saved(b"{" * 100_000), "header that is not JSON"),
        (saved(b'{"a":' * 100_000), "header that is not JSON"),
        (saved(b'{"a":' + b"1" * 5000 + b"}"), "header that is not JSON"),
        (saved(b'{"a":\xff}'), "header that is not JSON"),
    ],
)
def test_lies_are_refused(tmp_path, data, message):
    with pytest.raises(torch_file.TorchFileError, match=message):
        torch_file.load(write(tmp_path, data))
