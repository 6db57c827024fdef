import errno
import logging
import os
import pathlib
import shutil

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from refine_jax.errors import StorageError, WorkdirError
from refine_jax.training.checkpoints import DAMAGED, Checkpoints, read

META = {"identity": {"sha256": "abc"}, "seconds": 1.5}


def state(value=1.0):
    return {
        "params": {"kernel": np.full((3, 4), value, np.float32), "bias": np.zeros(4, np.float16)},
        "batch_stats": {},
        "opt_state": (np.arange(2, dtype=np.int32), {"trace": np.float32(value)}),
        "step": np.int32(7),
    }


def save(folder, *steps):
    with Checkpoints(folder) as kept:
        for step in steps:
            kept.save(step, state(step), META)


def test_what_was_saved_comes_back_with_types_and_structure(tmp_path):
    save(tmp_path / "kept", 7)
    with Checkpoints(tmp_path / "kept") as kept:
        assert kept.latest_step() == 7
        restored, meta = kept.restore(state(0))
        chex.assert_trees_all_equal(restored, state(7))
        chex.assert_trees_all_equal_dtypes(restored, state())
        assert {name: meta[name] for name in META} == META
    as_it_lies, meta = read(tmp_path / "kept")
    chex.assert_trees_all_equal(as_it_lies["params"], state(7)["params"])
    assert {name: meta[name] for name in META} == META


def test_where_things_lie_and_how_many_are_kept(tmp_path):
    save(tmp_path / "kept", 10, 20, 30)
    assert sorted(os.listdir(tmp_path / "kept")) == ["20", "30"]
    assert {"state", "meta"} <= {*os.listdir(tmp_path / "kept" / "30")}
    with Checkpoints(tmp_path / "kept") as kept:
        assert kept.latest_step() == 30
        assert kept.restore(state(), step=20)[0]["params"]["kernel"][0, 0] == 20


def test_once_saved_the_state_may_change(tmp_path):
    with Checkpoints(tmp_path / "kept") as kept:
        changing = {"on the host": np.ones(1000), "on the device": jnp.ones(1000)}
        kept.save(1, changing, META)
        changing["on the host"][:] = 0
        changing["on the device"].delete()
    restored, _ = read(tmp_path / "kept")
    assert all((leaf == 1).all() for leaf in restored.values())


def test_a_relative_folder_is_one_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save("kept", 1)
    assert (tmp_path / "kept" / "1").is_dir()


def test_orbax_has_nothing_to_warn_of(tmp_path, caplog, recwarn):
    save(tmp_path / "kept", 1, 2, 3)
    shutil.copytree(tmp_path / "kept" / "3", tmp_path / "kept" / "4.orbax-checkpoint-tmp")  # a save that was killed
    save(tmp_path / "kept", 4)
    with Checkpoints(tmp_path / "kept") as kept:
        kept.restore(state())
    read(tmp_path / "kept")
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert [str(warning.message) for warning in recwarn] == []
    assert sorted(os.listdir(tmp_path / "kept")) == ["3", "4"]


def test_a_save_that_was_killed_does_not_count(tmp_path):
    save(tmp_path / "kept", 1)
    shutil.copytree(tmp_path / "kept" / "1", tmp_path / "kept" / "2.orbax-checkpoint-tmp")
    with Checkpoints(tmp_path / "kept") as kept:
        assert kept.latest_step() == 1


def test_where_nothing_was_saved_that_is_said(tmp_path):
    with Checkpoints(tmp_path / "kept") as kept:
        assert kept.latest_step() is None
        assert kept.restore_newest_whole(state()) is None
        with pytest.raises(WorkdirError, match="kept holds no checkpoint"):
            kept.restore(state())
    for folder in (tmp_path / "kept", tmp_path / "none"):
        with pytest.raises(WorkdirError, match=f"{folder} holds no checkpoint"):
            read(folder)
    assert not (tmp_path / "none").exists()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "kept"
    save(folder, 1, 2)
    return folder


def cut(file):
    os.truncate(file, file.stat().st_size // 2)


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


FILES_THAT_SAY_NOTHING = ("_CHECKPOINT_METADATA", "commit_success.txt")

# Of threads that Orbax leaves behind where it fails.
threads = pytest.mark.filterwarnings("ignore:Exception ignored:pytest.PytestUnraisableExceptionWarning")


@threads
@pytest.mark.parametrize("damage", [cut, flip_a_bit, lambda file: os.truncate(file, 0), pathlib.Path.unlink])
def test_a_file_that_is_damaged_is_noticed_and_the_checkpoint_before_is_used(whole, tmp_path, damage, caplog):
    files = [file.relative_to(whole / "2") for file in sorted((whole / "2").rglob("*")) if file.is_file()]
    damaged = []
    for number, file in enumerate(files):
        folder = tmp_path / str(number) / "kept"
        shutil.copytree(whole, folder)
        damage(folder / "2" / file)
        caplog.clear()
        with Checkpoints(folder) as kept:
            restored, _ = kept.restore_newest_whole(state())
        step = int(restored["params"]["kernel"][0, 0])
        chex.assert_trees_all_equal(restored, state(step))  # never anything that was not written
        if step == 1:
            damaged.append(file.name)
            assert f"the checkpoint {folder / '2'} " in caplog.text
            assert "step 1 is gone on from instead" in caplog.text
            assert sorted(os.listdir(folder)) == ["1"]
            assert os.listdir(folder.parent / DAMAGED) == ["2"]
    # Orbax reads back what these say from elsewhere; what holds the arrays and what they are is among the others.
    assert {file.name for file in files} - {*damaged} <= {*FILES_THAT_SAY_NOTHING, "manifest.ocdbt", *_unread(whole)}
    assert {"metadata", "_METADATA"} <= {*damaged}
    assert len(damaged) >= 4


def _unread(folder):
    """Data files of a process, whose contents Orbax has merged into others."""
    return {file.name for file in (folder / "2" / "state").rglob("ocdbt.process_0/d/*")}


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError("of the host"), "of the host"),
        (OSError(errno.EMFILE, "Too many open files"), r"2 cannot be read now \(Too many open files\); nothing says"),
        (ValueError("FAILED [os_error_code='5']"), r"2 cannot be read now \(Input/output error\)"),
    ],
    ids=["memory", "Python's", "TensorStore's"],
)
def test_what_may_be_read_a_moment_later_is_not_damaged(whole, tmp_path, monkeypatch, error, message):
    shutil.copytree(whole, tmp_path / "kept")

    def fail(*_, **__):
        raise error

    with Checkpoints(tmp_path / "kept") as kept:
        monkeypatch.setattr(kept._manager, "restore", fail)
        with pytest.raises((MemoryError, StorageError), match=message):
            kept.restore_newest_whole(state())
    assert sorted(os.listdir(tmp_path / "kept")) == ["1", "2"]


@threads
def test_a_number_that_was_altered_is_noticed(whole, tmp_path):
    # A checkpoint in which every file is as it should be, but not the one whose checksum stands there.
    folder = tmp_path / "kept"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "2" / "state")
    shutil.copytree(folder / "1" / "state", folder / "2" / "state")
    with Checkpoints(folder) as kept, pytest.raises(WorkdirError, match=r"2 is not what was written: its SHA-256"):
        kept.restore(state(), 2)
    metadata = folder / "1" / "meta" / "metadata"
    metadata.write_text(metadata.read_text().replace('"seconds": 1.5', '"seconds": 1.25'))
    with Checkpoints(folder) as kept, pytest.raises(WorkdirError, match=r"none of the 2 checkpoints"):
        kept.restore_newest_whole(state())


@threads
def test_where_none_is_whole_that_is_said_and_nothing_is_moved(whole, tmp_path):
    folder = tmp_path / "victim" / "kept"
    shutil.copytree(whole, folder)
    for step in ("1", "2"):
        cut(folder / step / "meta" / "metadata")
    with Checkpoints(folder) as kept, pytest.raises(WorkdirError) as caught:
        kept.restore_newest_whole(state())
    message = str(caught.value)
    assert message.startswith(f"none of the 2 checkpoints in {folder} is whole; the checkpoint {folder / '2'} cannot")
    assert message.endswith(f"delete {folder.parent} to train again")
    assert "\n" not in message
    assert sorted(os.listdir(folder)) == ["1", "2"]


@threads
def test_a_training_that_is_over_is_read_and_not_touched(whole, tmp_path):
    folder = tmp_path / "victim" / "kept"
    shutil.copytree(whole, folder)
    shutil.copytree(folder / "2", folder / "3.orbax-checkpoint-tmp")
    before = {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}
    assert read(folder)[0]["params"]["kernel"][0, 0] == 2
    assert {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]} == before
    cut(folder / "2" / "meta" / "metadata")
    with pytest.raises(WorkdirError, match=rf"{folder}/2 cannot be read .*: delete it, and the stage .* one before"):
        read(folder)
    assert sorted(os.listdir(folder)) == ["1", "2", "3.orbax-checkpoint-tmp"]


def test_after_a_damaged_one_its_step_can_be_written_again(whole, tmp_path):
    folder = tmp_path / "kept"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "2" / "meta")
    with Checkpoints(folder) as kept:
        kept.restore_newest_whole(state())
        kept.save(2, state(5), META)
    assert read(folder)[0]["params"]["kernel"][0, 0] == 5


def test_the_newest_and_the_best_are_kept_over_runs(tmp_path):
    folder, losses = tmp_path / "kept", {1: 3.0, 2: 0.5, 3: 2.0, 4: 2.5, 5: np.inf, 6: 1.0}
    for run in ((1, 2, 3), (4, 5, 6)):
        with Checkpoints(folder, keep=1) as kept:
            for step in run:
                kept.save(step, state(step), META, losses[step])
    assert sorted(os.listdir(folder)) == ["2", "6"]
    with Checkpoints(folder, keep=3) as kept:
        for step in (7, 8):
            kept.save(step, state(step), META, 0.25)
    assert sorted(os.listdir(folder)) == ["6", "7", "8"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"params": {"kernel": np.zeros((3, 5), np.float32), "bias": np.zeros(4, np.float16)}},
            r"params/kernel is float32 of shape \(3, 4\), this run's float32 of shape \(3, 5\); 1 such",
        ),
        ({"params": {"kernel": np.zeros((3, 4), np.float32)}}, r"params/bias is float16 .*, this run's missing"),
        ({"step": np.int64(7)}, r"step is int32 of shape \(\), this run's int64"),
        ({"more": np.zeros(3)}, "more is missing, this run's float64"),
    ],
)
def test_arrays_of_another_network_are_refused(whole, tmp_path, changed, message):
    folder = tmp_path / "victim" / "kept"
    shutil.copytree(whole, folder)
    with Checkpoints(folder) as kept, pytest.raises(WorkdirError, match=message) as caught:
        kept.restore_newest_whole({**state(), **changed})
    assert str(caught.value).endswith(f"delete {folder.parent} to train again")
    assert sorted(os.listdir(folder)) == ["1", "2"]


@threads
def test_a_full_disk_is_said_and_the_checkpoint_before_is_whole(small_disk):
    noise = {"noise": np.random.default_rng(0).normal(size=300_000).astype(np.float32)}
    kept = Checkpoints(small_disk / "kept")
    kept.save(1, noise, META)
    kept.save(2, noise, META)
    with pytest.raises(StorageError) as caught:
        kept.save(3, noise, META)  # the writing of the second has failed meanwhile
    assert f"can be written to {small_disk / 'kept'} (No space left on device); those before" in str(caught.value)
    kept.close()
    assert os.listdir(small_disk / "kept") == ["1"]  # and what was begun takes no place
    with Checkpoints(small_disk / "kept") as kept:
        chex.assert_trees_all_equal(kept.restore_newest_whole(noise)[0], noise)
