import hashlib
import json
import os
import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest

from refine_jax import files
from refine_jax.errors import WorkdirError


def test_json_comes_back(tmp_path):
    value = {"a": [1, 2.5, None, True], "b": {"c": "ä"}}
    files.write_json(tmp_path / "x.json", value)
    assert files.read_json(tmp_path / "x.json") == value
    assert os.listdir(tmp_path) == ["x.json"]


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe", b"{'a': 1}"])
def test_damaged_json_is_named(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(WorkdirError, match=r"x\.json is damaged .*: delete the folder that it is in"):
        files.read_json(tmp_path / "x.json")


@pytest.mark.parametrize("write", [files.write_json, files.write_arrays])
def test_a_failed_write_leaves_what_was_there(tmp_path, write):
    path = tmp_path / "kept"
    path.write_text("as it was")

    class Refused:
        def __array__(self, *_, **__):
            raise OSError(28, "No space left on device")

    with pytest.raises((OSError, TypeError)):
        write(path, {"a": Refused()})
    assert path.read_text() == "as it was"


def test_arrays_come_back(tmp_path):
    arrays = {"a/b": np.arange(6, dtype=np.uint8).reshape(2, 3), "c": np.float64(0.1)}
    files.write_arrays(tmp_path / "x.npz", arrays)
    with np.load(tmp_path / "x.npz", allow_pickle=False) as file:
        assert sorted(file) == ["a/b", "c"]
        for name, value in arrays.items():
            np.testing.assert_array_equal(file[name], value)
            assert file[name].dtype == value.dtype


TREE = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": {"c": np.zeros(2, np.int32)}}


def test_a_hash_is_sha256_of_place_type_shape_and_values_in_the_order_of_places():
    digest = hashlib.sha256()
    digest.update(b"['a'] <f4 (2, 3)" + TREE["a"].tobytes())
    digest.update(b"['b']['c'] <i4 (2,)" + TREE["b"]["c"].tobytes())
    assert files.hash_arrays(TREE) == digest.hexdigest()


@pytest.mark.parametrize(
    "value",
    [
        np.float64(0.1),
        np.zeros((3, 0), np.int16),
        np.arange(12).reshape(3, 4)[:, ::2],
        np.arange(3, dtype=">i4"),
        np.array([True, False]),
        jnp.arange(3, dtype=jnp.bfloat16),
    ],
    ids=["a number", "nothing", "strided", "big-endian", "truths", "bfloat16"],
)
def test_arrays_of_every_kind_are_hashed_by_their_bytes(value):
    value = np.asarray(value)
    facts = f"['a'] {value.dtype.str} {value.shape}".encode()
    assert files.hash_arrays({"a": value}) == hashlib.sha256(facts + value.tobytes()).hexdigest()


def test_a_hash_needs_no_copy_of_the_arrays():
    array = np.ones((1 << 12, 1 << 10), np.uint8)
    array.flags.writeable = False
    tracemalloc.start()
    try:
        files.hash_arrays({"a": array})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < array.nbytes // 4


def test_the_same_arrays_have_the_same_hash_wherever_they_lie():
    reordered = {"b": {"c": jnp.zeros(2, jnp.int32)}, "a": np.asfortranarray(TREE["a"])}
    assert files.hash_arrays(reordered) == files.hash_arrays(TREE)


@pytest.mark.parametrize(
    "changed",
    [
        {**TREE, "a": TREE["a"].reshape(3, 2)},
        {**TREE, "a": TREE["a"].astype(np.float64)},
        {**TREE, "a": TREE["a"] + np.eye(2, 3, dtype=np.float32) * 1e-6},
        {**TREE, "a": TREE["a"].view(np.int32)},
        {"A": TREE["a"], "b": TREE["b"]},
        {"a": TREE["a"]},
    ],
    ids=["shape", "type", "a value", "bits of another type", "name", "one less"],
)
def test_any_change_changes_the_hash(changed):
    assert files.hash_arrays(changed) != files.hash_arrays(TREE)


def test_json_is_for_people_too(tmp_path):
    files.write_json(tmp_path / "x.json", {"a": {"b": 1}})
    text = (tmp_path / "x.json").read_text()
    assert text.endswith("}\n")
    assert len(text.splitlines()) == 5
    assert json.loads(text) == {"a": {"b": 1}}
