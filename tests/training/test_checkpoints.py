import logging
import os
import shutil

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from refine_jax.errors import WorkdirError
from refine_jax.training.checkpoints import Checkpoints

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
        assert meta == META
        as_it_lies, _ = kept.restore()
        chex.assert_trees_all_equal(as_it_lies["params"], state(7)["params"])


def test_where_things_lie_and_how_many_are_kept(tmp_path):
    save(tmp_path / "kept", 10, 20, 30)
    assert sorted(os.listdir(tmp_path / "kept")) == ["20", "30"]
    assert {"state", "meta"} <= {*os.listdir(tmp_path / "kept" / "30")}
    with Checkpoints(tmp_path / "kept") as kept:
        assert kept.latest_step() == 30
        assert kept.restore(step=20)[0]["params"]["kernel"][0, 0] == 20


def test_once_saved_the_state_may_change(tmp_path):
    with Checkpoints(tmp_path / "kept") as kept:
        changing = {"on the host": np.ones(1000), "on the device": jnp.ones(1000)}
        kept.save(1, changing, META)
        changing["on the host"][:] = 0
        changing["on the device"].delete()
    with Checkpoints(tmp_path / "kept") as kept:
        restored, _ = kept.restore()
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
        kept.restore()
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
        with pytest.raises(WorkdirError, match="kept holds no checkpoint"):
            kept.restore()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "kept"
    save(folder, 1, 2)
    return folder


@pytest.mark.filterwarnings(
    "ignore:Exception ignored:pytest.PytestUnraisableExceptionWarning"
)  # of threads that Orbax leaves behind
@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: shutil.rmtree(folder / "state"),
        lambda folder: shutil.rmtree(folder / "meta"),
        lambda folder: (folder / "meta" / "metadata").unlink(),
        lambda folder: os.truncate(folder / "meta" / "metadata", 5),
        lambda folder: (folder / "state" / "_METADATA").unlink(),
        lambda folder: os.truncate(folder / "state" / "_METADATA", 5),
        lambda folder: (folder / "state" / "manifest.ocdbt").unlink(),
        lambda folder: os.truncate(folder / "state" / "manifest.ocdbt", 5),
        lambda folder: [os.truncate(file, 5) for file in (folder / "state").rglob("d/*")],
    ],
    ids=[
        "no state",
        "no meta",
        "no JSON",
        "half JSON",
        "no tree",
        "half tree",
        "no index",
        "half index",
        "half arrays",
    ],
)
@pytest.mark.parametrize("template", [None, state()], ids=["as it lies", "like a template"])
def test_a_damaged_checkpoint_is_named_with_what_to_do(whole, tmp_path, damage, template):
    folder = tmp_path / "victim" / "kept"
    shutil.copytree(whole, folder)
    damage(folder / "2")
    with Checkpoints(folder) as kept:
        with pytest.raises(WorkdirError) as caught:
            kept.restore(template)
        message = str(caught.value)
        assert message.startswith(f"the checkpoint {folder / '2'} cannot be read (")
        assert message.endswith(f"delete it to go on from the one before, or {folder.parent} to train again")
        assert "\n" not in message
    shutil.rmtree(folder / "2")
    with Checkpoints(folder) as kept:
        assert kept.restore(template)[0]["params"]["kernel"][0, 0] == 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"params": {"kernel": np.zeros((3, 5), np.float32), "bias": np.zeros(4, np.float16)}}, r"kernel.*\(3, 4\)"),
        ({"params": {"kernel": np.zeros((3, 4), np.float32)}}, "cannot be read"),
        ({"more": np.zeros(3)}, "cannot be read"),
    ],
)
def test_arrays_of_another_network_are_refused(whole, tmp_path, changed, message):
    shutil.copytree(whole, tmp_path / "kept")
    with Checkpoints(tmp_path / "kept") as kept, pytest.raises(WorkdirError, match=message):
        kept.restore({**state(), **changed})
