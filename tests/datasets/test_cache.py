import logging
import os
import pathlib
import subprocess
import sys
import time

import chex
import numpy as np
import pytest

from refine_jax.datasets import cache


def arrays(value=1):
    return {"images": np.full((5, 4, 4, 3), value, np.uint8), "labels": np.arange(5, dtype=np.int32)}


def never():
    raise AssertionError("built although it is kept")


def entry(folder):
    (path,) = (path for path in folder.iterdir() if not path.name.startswith("."))
    return path


def test_built_once_then_mapped(tmp_path):
    first = cache.load_or_build("small", "key", arrays, tmp_path)
    second = cache.load_or_build("small", "key", never, tmp_path)
    chex.assert_trees_all_equal(*({k: np.asarray(v) for k, v in x.items()} for x in (first, second, arrays())))
    for found in (first, second):
        assert isinstance(found["images"], np.memmap)
        assert not found["images"].flags.writeable


def test_another_key_is_another_entry(tmp_path):
    cache.load_or_build("small", "key", arrays, tmp_path)
    assert cache.load_or_build("small", "other", lambda: arrays(2), tmp_path)["images"].max() == 2
    assert cache.load_or_build("small", "key", never, tmp_path)["images"].max() == 1


def remove_folder(path):
    for file in path.iterdir():
        file.unlink()
    path.rmdir()


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "truncated": lambda path: os.truncate(path / "images.npy", 150),
    "a changed byte": lambda path: flip_a_byte(path / "images.npy"),
    "a missing array": lambda path: (path / "labels.npy").unlink(),
    "no manifest": lambda path: (path / "manifest.json").unlink(),
    "half a manifest": lambda path: os.truncate(path / "manifest.json", 20),
    "another manifest": lambda path: (path / "manifest.json").write_text("[]"),
    "an empty folder": lambda path: [file.unlink() for file in path.iterdir()],
    "a file in its place": lambda path: (remove_folder(path), path.write_text("")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_noticed_said_and_mended(tmp_path, caplog, damage):
    cache.load_or_build("small", "key", arrays, tmp_path)
    DAMAGES[damage](entry(tmp_path))
    mended = cache.load_or_build("small", "key", lambda: arrays(2), tmp_path)
    assert mended["images"].min() == 2
    assert isinstance(mended["images"], np.memmap)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert str(entry(tmp_path)) in caplog.text
    assert "damaged" in caplog.text
    assert cache.load_or_build("small", "key", never, tmp_path)["images"].min() == 2
    assert len(list(tmp_path.iterdir())) == 1  # nothing is left lying about


def test_a_large_file_is_checked_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_BLOCK", 16)
    monkeypatch.setattr(cache, "_BLOCKS", 4)
    path = tmp_path / "large"
    path.write_bytes(bytes(400))  # the parts begin at 0, 100, 200 and 300
    whole = cache._facts(path)
    path.write_bytes(bytes(200) + b"x" * 100 + bytes(100))
    assert cache._facts(path) != whole
    assert cache._facts(path)["bytes"] == 400


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch, error):
    save = np.save

    def interrupted(file, array):
        if array.ndim == 1:
            raise error
        save(file, array)

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", interrupted)
        if error is KeyboardInterrupt:
            with pytest.raises(KeyboardInterrupt):
                cache.load_or_build("small", "key", arrays, tmp_path)
        else:
            assert cache.load_or_build("small", "key", arrays, tmp_path)["images"].max() == 1
    assert list(tmp_path.iterdir()) == []
    cache.load_or_build("small", "key", arrays, tmp_path)
    cache.load_or_build("small", "key", never, tmp_path)


def test_what_a_killed_process_left_is_harmless(tmp_path):
    (tmp_path / ".small-key-v1.0123").mkdir()
    (tmp_path / ".small-key-v1.0123" / "images.npy").write_bytes(b"half")
    cache.load_or_build("small", "key", arrays, tmp_path)
    cache.load_or_build("small", "key", never, tmp_path)


def test_what_killed_processes_left_is_removed_after_a_day(tmp_path):
    def leave(name, file_age, folder_age, file="images.npy"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / file).write_bytes(b"half")
        for path, age in ((folder / file, file_age), (folder, folder_age)):
            os.utime(path, (time.time() - 3600 * age,) * 2)

    old, new = f".other-key-v1.{'0' * 32}", f".small-key-v1.{'1' * 32}"
    leave(old, 25, 25)
    leave(f".small-key-v1.{'2' * 32}.damaged", 90, 80)
    leave(new, 23, 90)  # the file in it is being written
    kept = [new, ".another program's", "small-key-v0"]
    for name in kept[1:]:
        leave(name, 90, 90)
    (tmp_path / f".small-key-v1.{'3' * 32}.damaged").write_text("")
    os.utime(tmp_path / f".small-key-v1.{'3' * 32}.damaged", (0, 0))
    cache.load_or_build("small", "key", arrays, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*kept, "small-key-v1"}


@pytest.mark.parametrize("damage", [None, "truncated"])
def test_another_process_is_first(tmp_path, damage):
    if damage:
        cache.load_or_build("small", "key", arrays, tmp_path)
        DAMAGES[damage](entry(tmp_path))

    def overtaken():
        cache.load_or_build("small", "key", lambda: arrays(2), tmp_path)
        return arrays(3)

    # Both built the same in earnest; the values tell whose was kept.
    assert cache.load_or_build("small", "key", overtaken, tmp_path)["images"].max() == 2
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("obstacle", ["a file in the way", "not allowed"])
def test_without_a_place_to_write_it_goes_on_in_memory(tmp_path, monkeypatch, caplog, obstacle):
    folder = tmp_path / "cache"
    if obstacle == "a file in the way":
        folder.write_text("")
    else:

        def refuse(path, **_):
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(pathlib.Path, "mkdir", refuse)
    found = cache.load_or_build("small", "key", arrays, folder)
    chex.assert_trees_all_equal(found, arrays())
    assert not found["images"].flags.writeable
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert str(folder) in caplog.text


def test_where_entries_lie(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("REFINE_JAX_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache.directory() == tmp_path / ".cache" / "refine_jax"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.directory() == tmp_path / "xdg" / "refine_jax"
    monkeypatch.setenv("REFINE_JAX_CACHE", "~/mine")
    assert cache.directory() == tmp_path / "mine"
    assert cache.directory(tmp_path / "given") == tmp_path / "given"


def test_the_fingerprint_follows_the_files(tmp_path):
    (tmp_path / "info.json").write_text("1")
    (tmp_path / "data").write_text("12")
    os.utime(tmp_path / "info.json", (1, 1))
    os.utime(tmp_path / "data", (1, 1))
    prints = [cache.fingerprint(tmp_path, ["info.json"])]
    assert cache.fingerprint(tmp_path, ["info.json"]) == prints[0]

    (tmp_path / "info.json").write_text("2")  # the content, though size and time are as before
    os.utime(tmp_path / "info.json", (1, 1))
    prints.append(cache.fingerprint(tmp_path, ["info.json"]))
    os.utime(tmp_path / "data", (2, 2))
    prints.append(cache.fingerprint(tmp_path, ["info.json"]))
    (tmp_path / "data").write_text("123")
    os.utime(tmp_path / "data", (2, 2))
    prints.append(cache.fingerprint(tmp_path, ["info.json"]))
    (tmp_path / "data").rename(tmp_path / "renamed")
    prints.append(cache.fingerprint(tmp_path, ["info.json"]))
    assert len(set(prints)) == 5


# Builds an entry when it is told to; without the seconds that importing the package takes.
BUILDER = """
import importlib.util, sys, numpy as np
spec = importlib.util.spec_from_file_location("cache", sys.argv[1])
cache = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cache)
number = int(sys.argv[3])
def build():
    print("building", flush=True)
    sys.stdin.readline()
    return {name: np.full((300, 1000), number, np.int32) for name in "ab"}
for _ in range(2):
    arrays = cache.load_or_build("images", "key", build, sys.argv[2])
    print(*{int(value) for array in arrays.values() for value in np.unique(array)}, flush=True)
"""


def test_many_processes_that_build_the_same_at_once_all_get_it_whole(tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", BUILDER, cache.__file__, str(tmp_path), str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    for process in processes:
        assert process.stdout.readline() == "building\n"  # all of them, since none is done
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate(timeout=60)[0].split() for process in processes]
    assert len({value for values in said for value in values}) == 1  # that of whoever came first
    assert [len(values) for values in said] == [2] * 4
    assert [path.name.startswith("images-key") for path in tmp_path.iterdir()] == [True]
