"""No opcode takes more memory than it is charged for, and nothing that leaves a file is larger than it looks."""

import io
import struct
import time
import tracemalloc

import numpy as np
import pytest

from refine_jax.interop import torch_file, torch_pickle, values
from refine_jax.interop.pickle_machine import Budget
from refine_jax.interop.torch_tensors import Storage
from refine_jax.interop.untrusted import MAX_NESTING, MIB, TorchFileError
from tests.interop.test_torch_file import write
from tests.interop.torch_files import archive, integer, named, storage, string, tensor, whole_tuple

BUDGET = 2 * MIB
COUNT = 80_000
ARRAY = named("numpy._core.multiarray", "_reconstruct")
EMPTY = b"(" + named("numpy", "ndarray") + b"K\0\x85" + string("b") + b"t"
FLOAT = named("numpy", "dtype") + string("f4") + b"\x85R"


def again(called, arguments, repeated):
    """Returns opcodes that push a name and its arguments once, and call it again and again."""
    return named(*called.rsplit(".", 1)) + b"q\0" + arguments + b"q\1" + b"h\0h\1R" * repeated


PATTERNS = {
    "None": b"N" * COUNT * 3,
    "the same on top": b"N" + b"2" * COUNT * 3,
    "marks": b"(" * COUNT,
    "small numbers": b"M\xff\xff" * COUNT,
    "large numbers": (b"\x8a\xff" + b"\x7f" * 255) * 20_000,
    "fractions": (b"G" + struct.pack(">d", 0.1)) * COUNT,
    "lists": b"]" * COUNT,
    "lists of one": b"]Na" * COUNT,
    "a long list": b"]" + b"(" + b"N" * COUNT * 2 + b"e",
    "a list, one after another": b"]" + b"Na" * COUNT,
    "dicts": b"}" * COUNT,
    "dicts of one": b"}NNs" * COUNT,
    "a large dict": b"}" + b"".join(b"J" + struct.pack("<i", i << 8) + b"Ns" for i in range(COUNT)),
    "a large dict at once": b"}(" + b"".join(b"J" + struct.pack("<i", i << 8) + b"N" for i in range(COUNT)) + b"u",
    "sets": b"\x8f" * COUNT,
    "a large set": b"\x8f(" + b"".join(b"J" + struct.pack("<i", i << 8) for i in range(COUNT)) + b"\x90",
    "nested tuples": b")" + b"\x85" * COUNT,
    "a large tuple": b"(" + b"N" * COUNT * 2 + b"t",
    "memo": b"N" + b"".join(b"r" + struct.pack("<I", i) for i in range(COUNT)),
    "next memo": b"N" + b"\x94" * COUNT,
    "strings": (b"X\1\0\0\0" + b"a") * COUNT,
    "a wide string": string("\U0001f600" + "a" * 900_000),
    "wide strings": string("\U0001f600" + "a" * 20) * 20_000,
    "bytes": (b"C\1" + b"a") * COUNT,
    "lines": b"Va\n" * COUNT,
    "names": named("collections", "OrderedDict") * 20_000,
    "called dicts": again("collections.OrderedDict", b")", COUNT),
    "called namespaces": again("argparse.Namespace", b")", COUNT),
    "called sets": again("builtins.set", b")", COUNT),
    "copies of a set": again("builtins.set", b"](" + b"".join(map(integer, range(5000))) + b"e\x85", 50),
    "copies of a size": again("torch.Size", b"](" + b"K\1" * 5000 + b"e\x85", 50),
    "copies of a text": again("_codecs.encode", string("a" * 50_000) + string("latin1") + b"\x86", 50),
    "copies of pairs": again("collections.OrderedDict", b"](" + b"K\1N\x86" * 3000 + b"e\x85", 50),
    "copies of a device": again("torch.device", string("a" * 20_000) + b"K\0\x86", 400),
    "copies of a wide device": again("torch.device", string("\U0001f600" * 5_000) + b"K\0\x86", 400),
    "tensors": again(
        "torch._utils._rebuild_tensor",
        b"(" + storage() + b"K\0" + whole_tuple([1] * 30) + whole_tuple([0] * 30) + b"t",
        COUNT,
    ),
    "storages": (storage() + b"0") * 20_000,
    "NumPy arrays": again("numpy.core.multiarray._reconstruct", EMPTY, COUNT),
    "NumPy numbers": again("numpy.core.multiarray.scalar", b"(" + FLOAT + b"B\4\0\0\0abcdt", COUNT),
    "large NumPy arrays": b"B" + struct.pack("<I", 100_000) + bytes(100_000) + b"q\2" + FLOAT + b"q\3"
    + (ARRAY + EMPTY + b"R(K\1" + integer(25_000) + b"\x85h\3\x89h\2tb") * 40,
}  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_memory_stays_within_the_budget(pattern):
    data = io.BytesIO(b"\x80\x04(" + PATTERNS[pattern] + b"l.")
    shared = Storage(np.zeros(24, np.uint8), np.dtype(np.float32))
    tracemalloc.start()
    try:
        with pytest.raises(TorchFileError, match="objects of more than 2097152 bytes"):
            values.check(torch_pickle.load(data, len(data.getvalue()), lambda _: shared, Budget(BUDGET)), 1)
        assert tracemalloc.get_traced_memory()[1] < BUDGET
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("body", [b"]" * 5000, b"]" + b"(" + b"]" * 5000 + b"e", b"}" * 5000, b"N\x85" * 5000])
def test_the_last_check_is_within_the_budget_too(body):
    data = io.BytesIO(b"\x80\x04(" + body + b"l.")
    tracemalloc.start()
    try:
        values.check(torch_pickle.load(data, len(data.getvalue()), lambda _: None, Budget(BUDGET + MIB // 8)), 1)
        assert tracemalloc.get_traced_memory()[1] < BUDGET
    finally:
        tracemalloc.stop()


def load(tmp_path, opcodes, stored=b"\0" * 24):
    return torch_file.load(write(tmp_path, archive(b"\x80\x02" + opcodes + b".", {"0": stored})))


def test_a_memo_bomb_is_refused(tmp_path):
    """Each list holds the one before it twice: 2 ** 40 values in 300 bytes."""
    bomb = b"]q\0" + b"".join(
        b"]q" + bytes([i]) + b"(h" + bytes([i - 1]) + b"h" + bytes([i - 1]) + b"e" for i in range(1, 41)
    )
    with pytest.raises(TorchFileError, match="memo bomb"):
        load(tmp_path, bomb)
    started = time.perf_counter()
    with pytest.raises(TorchFileError, match="has a tuple as a key"):
        load(tmp_path, b"})" + b"2\x86" * 40 + b"Ns")
    assert time.perf_counter() - started < 5


def test_nesting_is_bounded_and_nothing_holds_itself(tmp_path):
    for depth, opens, closes in [(20_000, b"]", b"a"), (20_000, b"}N", b"s"), (MAX_NESTING, b"]", b"a")]:
        with pytest.raises(TorchFileError, match=f"more than {MAX_NESTING} deep"):
            load(tmp_path, opens * depth + b"]" + closes * depth)
    with pytest.raises(TorchFileError, match="more than 100 deep, or one in itself"):
        load(tmp_path, b"]q\0h\0a")
    nested = load(tmp_path, b"]" * MAX_NESTING + b"a" * (MAX_NESTING - 1))
    for _ in range(MAX_NESTING - 1):
        (nested,) = nested
    assert nested == []


def test_depth_counts_along_the_longest_way(tmp_path):
    """A chain that is first met from the side is as deep as ever."""
    half = b"]" * 60 + b"a" * 59 + b"q\0"
    with pytest.raises(TorchFileError, match="more than 100 deep"):
        load(tmp_path, b"](" + half + b"]" * 60 + b"h\0" + b"a" * 60 + b"e")


@pytest.mark.parametrize(
    ("size", "stride", "offset", "message"),
    [
        ((7,), (1,), 0, "ends at element 6 of a storage of 6"),
        ((2, 3), (4, 1), 0, "ends at element 6 of a storage of 6"),
        ((1,), (1,), 6, "ends at element 6 of a storage of 6"),
        ((2,), (1 << 61,), 0, "of a storage of 6"),
        ((1 << 30, 1 << 30), (0, 0), 0, "has an array of shape"),
        ((0, 1 << 61), (1, 1), 0, "has an array of shape"),
        ((1,) * 33, (1,) * 33, 0, "has an array of 33 axes"),
        ((2, 3), (1,), 0, "has a tensor of 2 sizes and 1 strides"),
        ((-2,), (1,), 0, "has -2 where a size belongs"),
        ((2,), (-1,), 0, "has -1 where a size belongs"),
        ((2,), (1,), -1, "has -1 where a size belongs"),
        ((1 << 70,), (1,), 0, "where a size belongs"),
    ],
)
def test_a_tensor_stays_in_its_storage(tmp_path, size, stride, offset, message):
    with pytest.raises(TorchFileError, match=message):
        load(tmp_path, tensor(size, stride, offset))


def test_a_tensor_may_touch_the_end_of_its_storage(tmp_path):
    stored = np.arange(6, dtype=np.float32).tobytes()
    np.testing.assert_array_equal(load(tmp_path, tensor((2, 2), (3, 2)), stored), [[0, 2], [3, 5]])
    np.testing.assert_array_equal(load(tmp_path, tensor((0,), (1,), 99), stored), np.zeros(0))


def test_expanded_tensors_count_together(tmp_path):
    one = tensor((1 << 23,), (0,))
    assert load(tmp_path, b"(" + one + b"l")[0].shape == (1 << 23,)
    with pytest.raises(TorchFileError, match="take 100663296 bytes written out"):
        load(tmp_path, b"(" + one + one + one + b"l")
    with pytest.raises(TorchFileError, match="take 4398046511104 bytes written out"):
        load(tmp_path, b"]" + tensor((1 << 40,), (0,)) + b"a")


def test_truth_values_are_0_or_1(tmp_path):
    stored = storage(kind="BoolStorage")
    np.testing.assert_array_equal(
        load(tmp_path, tensor((3,), (2,), stored=stored), b"\1\0\0\0\1\0"), [True, False, True]
    )
    with pytest.raises(TorchFileError, match="neither 0 nor 1"):
        load(tmp_path, tensor((6,), (1,), stored=stored), b"\1\0\0\0\2\0")


def test_an_expanded_tensor_is_refused_before_it_is_looked_into(tmp_path):
    """A storage of one truth value, shown 2 ** 40 times."""
    stored = storage(numel=1, kind="BoolStorage")
    tracemalloc.start()
    try:
        with pytest.raises(TorchFileError, match="take 1099511627776 bytes written out"):
            load(tmp_path, tensor((1 << 40,), (0,), stored=stored), b"\1")
        assert tracemalloc.get_traced_memory()[1] < MIB
        load(tmp_path, tensor((1 << 25,), (0,), stored=stored), b"\1")  # within the limits: no copy of it is made
        assert tracemalloc.get_traced_memory()[1] < MIB
    finally:
        tracemalloc.stop()


def test_limits_are_tested_at_each_child_and_arrays_are_looked_into_once(monkeypatch):
    class Counting(np.ndarray):
        seen = 0

        def view(self, *kind):
            Counting.seen += 1
            return np.asarray(self).view(*kind)

    shared = np.zeros(1 << 20, bool).view(Counting)
    values.check([shared] * 60, 1)
    assert Counting.seen == 1
    looked_at = iter([shared] * 1000)
    monkeypatch.setattr(values, "_extent", _stop_after(values._extent, looked_at))
    with pytest.raises(TorchFileError, match=f"take {65 << 20} bytes written out"):
        values.check([shared] * 1000, 1)
    assert Counting.seen == 1
    assert len(list(looked_at)) == 1000 - 66  # the list itself and 65 of its children


def _stop_after(function, counter):
    def counted(*arguments):
        next(counter)
        return function(*arguments)

    return counted


@pytest.mark.parametrize(
    "opcodes",
    [
        b"}(" + b"".join(integer(i << 40) + b"N" for i in range(6)) + b"u",
        b"\x8f(" + b"".join(map(integer, range(6))) + b"\x90",
        b"}(" + b"".join(b"G" + struct.pack(">d", i) + b"N" for i in range(6)) + b"u",
        b"](" + b"".join(b"}" + integer(i) + b"Ns" for i in range(6)) + b"e",
        again("collections.OrderedDict", b"](" + b"K\1N\x86K\2N\x86" + b"e\x85", 3),
        again("builtins.set", b"](K\1K\2e\x85", 3),
        again("collections.Counter", b"}(K\1K\1K\2K\1u\x85", 2),
    ],
)
def test_numbers_as_keys_are_counted_over_all_containers(tmp_path, monkeypatch, opcodes):
    """Their hashes are known, so that many of them make a dict take forever."""
    monkeypatch.setattr("refine_jax.interop.pickle_machine.MAX_NUMBER_KEYS", 6)
    load(tmp_path, opcodes)
    monkeypatch.setattr("refine_jax.interop.pickle_machine.MAX_NUMBER_KEYS", 5)
    with pytest.raises(TorchFileError, match="more than 5 numbers as keys or elements of sets"):
        load(tmp_path, opcodes)


@pytest.mark.parametrize("number", [-1, 1002, (1 << 61) - 1])
def test_values_are_kept_in_turn(tmp_path, number):
    """Numbers of the memo that all have one hash would make it take forever."""
    assert load(tmp_path, b"Np0\np1001\n") is None
    with pytest.raises(TorchFileError, match=f"keeps a value out of turn, as number {number}"):
        load(tmp_path, b"Np5\np%d\n" % number)
