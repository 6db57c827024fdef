"""The older formats of torch.save where they lie."""

import struct

import numpy as np
import pytest

from refine_jax.interop import torch_file
from tests.interop import torch_files
from tests.interop.test_torch_file import assert_same, write
from tests.interop.torch_files import dump, integer, named, pair, stream, string, tensor

VALUES = np.arange(6, dtype=np.float32)
STORED = struct.pack("<q", 6) + VALUES.tobytes()


def stored(numel=6, view=b"N", key="0", kind="FloatStorage"):
    """Returns the opcodes that push a storage of a stream."""
    head = b"(" + string("storage") + named("torch", kind) + string(key) + string("cpu")
    return head + integer(numel) + view + b"tQ"


def part(begin, numel):
    return b"(" + string("part") + integer(begin) + integer(numel) + b"t"


def pickled(*storages):
    return b"\x80\x02(" + b"".join(tensor((2,), (1,), stored=each) for each in storages) + b"l."


def test_parts_of_a_storage(tmp_path):
    data = stream(pickled(stored(), stored(view=part(2, 3))), ["0"], STORED)
    assert_same(torch_file.load(write(tmp_path, data)), [VALUES[:2], VALUES[2:4]])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch_files.MAGIC + dump(1000), "stream of the version 1000"),
        (stream(pickled(stored(1 << 40)), ["0"], STORED), "has storages of 4398046511104 bytes, and holds"),
        (stream(pickled(stored(), stored(7)), ["0"], STORED), "describes its storage '0' in two ways"),
        (stream(pickled(stored(), stored(kind="IntStorage")), ["0"], STORED), "describes its storage '0' in two ways"),
        (stream(pickled(stored()), [], STORED), "lists other storages than its tensors need"),
        (stream(pickled(stored()), ["0", "0"], STORED * 2), "lists other storages than its tensors need"),
        (stream(pickled(stored()), ["0"], struct.pack("<q", 7) + bytes(28)), "holds 7 elements in its storage '0'"),
        (stream(pickled(stored()), ["0"], struct.pack("<q", -6) + bytes(24)), "holds -6 elements in its storage '0'"),
        (stream(pickled(stored()), ["0"], STORED[:-1]), "ends in the middle of a tensor's data"),
        (stream(pickled(stored()), ["0"], b"\6"), "ends in the middle of a tensor's data"),
        (stream(pickled(stored(view=part(4, 3))), ["0"], STORED), "byte 28 of 24"),
        (stream(pickled(stored(view=b"K\1")), ["0"], STORED), "has 1 as a part of a storage"),
        (torch_files.MAGIC + dump(1001) + b"\x80\x02" + stored() + b".", "refers to something outside its pickle"),
    ],
)  # fmt: skip
def test_lies_of_a_stream_are_refused(tmp_path, data, message):
    with pytest.raises(torch_file.TorchFileError, match=message):
        torch_file.load(write(tmp_path, data))


STORAGES = dump(1) + pair(10, "cpu", "FloatStorage") + STORED
TENSOR = {"storages": STORAGES + dump([]), "tensors": dump(1) + dump((20, 10, None))}
EMPTY = {"storages": dump(0) + dump([]), "tensors": dump(0), "pickle": dump(None)}


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"storages": dump(-1)}, "has -1 where a size belongs"),
        ({"storages": dump(1 << 60)}, "ends in the middle of its pickle"),
        ({"storages": dump(1) + dump((1, "cpu", None))}, "has a storage of the type None"),
        ({"storages": STORAGES[:-32] + struct.pack("<q", 1 << 50)}, "ends in the middle of a tensor's data"),
        ({"storages": STORAGES + dump([(11, 10, 4, 3)])}, "ends at byte 28 of 24"),
        ({"storages": STORAGES + dump([(11, 12, 4, 2)])}, "has a tuple as a part of a storage"),
        ({"storages": STORAGES + dump([(10, 10, 4, 2)])}, "has 10 as the identity"),
        ({"tensors": dump(1) + dump((1, 2, 3))}, "has a tensor of the storage 2, which it does not hold"),
        (TENSOR | {"tensors": TENSOR["tensors"] + struct.pack("<i4x", 1 << 30)},
         "has a tensor of 1073741824 axes"),
        (TENSOR | {"tensors": TENSOR["tensors"] + struct.pack("<i4x3q", 1, 7, 1, 0)},
         "ends at element 6 of a storage of 6"),
        ({"pickle": b"\x80\x02" + string("9") + b"Q."}, "refers to '9', which is none of its tensors"),
        ({"pickle": b"\x80\x02" + b"N" + b"Q."}, "refers to None, which is none of its tensors"),
        ({"pickle": b"\x80\x02" + named("os", "system") + b"."}, r"names os\.system"),
    ],
)  # fmt: skip
def test_lies_of_a_tar_archive_are_refused(tmp_path, members, message):
    with pytest.raises(torch_file.TorchFileError, match=message):
        torch_file.load(write(tmp_path, torch_files.tar(EMPTY | members)))


def test_a_damaged_header_of_a_tar_archive_is_noticed(tmp_path):
    data = bytearray(torch_files.tar())
    data[data.index(b"tensors")] ^= 1
    with pytest.raises(torch_file.TorchFileError, match="damaged tar archive"):
        torch_file.load(write(tmp_path, bytes(data)))
