"""What counts as done, and what is said of what was left and is no more what it was."""

import types

import numpy as np
import pytest

from refine_jax import outcomes
from refine_jax.errors import WorkdirError
from refine_jax.files import hash_arrays
from refine_jax.workdir import Record


def finished(folder, **outcome):
    record = Record(folder / "stage", {})
    record.finish({"victim_sha256": "abc", "sha256": "def", **outcome})
    return record


@pytest.mark.parametrize(
    ("outcome", "last"),
    [
        ({"steps": 7}, ["7"]),
        (
            {"steps": None, "parts": {"copy/checkpoints": 3, "unet/checkpoints": 7}},
            ["copy/checkpoints/3", "unet/checkpoints/7"],
        ),
    ],
)
def test_a_stage_is_done_as_long_as_the_last_checkpoint_of_each_training_is_there(tmp_path, outcome, last):
    record = finished(tmp_path, **outcome)
    for name in last:
        assert not outcomes.is_done(record)
        (record.folder / "checkpoints" / name).mkdir(parents=True)
    assert outcomes.is_done(record)
    for name in last:  # as a message says that it may be
        place = record.folder / "checkpoints" / name
        place.rename(place.with_name("1"))
        assert not outcomes.is_done(record)
        place.with_name("1").rename(place)


@pytest.mark.parametrize("outcome", [{}, {"steps": None}])
def test_what_the_first_versions_have_not_noted_is_not_asked_for(tmp_path, outcome):
    assert outcomes.is_done(finished(tmp_path, **outcome))
    assert not outcomes.is_done(Record(tmp_path / "nothing", {}))


def test_of_published_weights_that_are_others_now_their_file_is_named(tmp_path, monkeypatch):
    weights = {"params": np.zeros(3)}
    record = finished(tmp_path, sha256=hash_arrays(weights))
    run = types.SimpleNamespace(
        defenses={"bdmae": record},
        victim=types.SimpleNamespace(require=lambda stage: {"victim_sha256": "abc"}),
        settings={"defense": {}},
        dataset=types.SimpleNamespace(image_size=(8, 8)),
    )
    monkeypatch.setattr(outcomes, "settings_of", lambda name, section: {"mae_checkpoint": "mae.pth"})
    loaded = types.SimpleNamespace(load=lambda *_: types.SimpleNamespace(parts=lambda: weights))
    monkeypatch.setitem(outcomes.DEFENSES, "bdmae", loaded)
    outcomes.load_defense(run, "bdmae", None)
    weights["params"] = np.ones(3)
    message = (
        r"^mae.pth holds other weights than defense.bdmae was made with: put that file back, or delete .*stage, and"
    )
    with pytest.raises(WorkdirError, match=message):
        outcomes.load_defense(run, "bdmae", None)
