"""What counts of a run that was made with other defenses than its sweep asks for."""

import types

import numpy as np
import pytest
from PIL import Image

from refine_jax import settings
from refine_jax.files import hash_arrays, read_record, write_json, write_record
from refine_jax.sweep import __main__ as sweep
from refine_jax.sweep import inputs, plan, state
from refine_jax.workdir import Workdir
from tests.sweep.fake import figures, make

NAMES = ("refine", "jpeg", "shrinkpad")


def task_of(folder, names=NAMES, **fields):
    sweep = make({"attack.target": (0,)}, seeds=(0,))
    sweep.base.defense.names = names
    sweep.base.update_from_flattened_dict(fields)
    (run,) = plan.expand(sweep, folder).runs
    return run


@pytest.fixture
def kept(tmp_path):
    """Leaves results.json of a run with these defenses and fields."""

    def leave(*names, **fields):
        task = task_of(tmp_path, names, **fields)
        work = Workdir(task.workdir)
        work.create()
        defenses = {name: figures(0.9, number / 10) for number, name in enumerate(names)}
        resolved = settings.complete(task.config)
        write_record(
            work.results, {"settings": resolved, "no_defense": figures(0.9, 1.0), "defenses": defenses, "warnings": []}
        )
        return defenses

    return leave


@pytest.mark.parametrize(
    ("names", "counted"),
    [
        (NAMES, NAMES),
        (("shrinkpad", "refine"), ("refine", "shrinkpad")),
        (("jpeg",), ("jpeg",)),
        (("bit_depth", *NAMES), NAMES),
        (("bit_depth", "shrinkpad"), ("shrinkpad",)),
    ],
)
def test_the_defenses_that_are_there_count(kept, tmp_path, names, counted):
    defenses = kept(*names)
    task = task_of(tmp_path)
    found = state.measured(task)
    assert found["defenses"] == {name: defenses[name] for name in counted}
    assert [*found["defenses"]] == [*counted]
    assert state.is_done(task) == (names == NAMES)


def test_warnings_of_defenses_that_are_not_asked_for_are_left_out(kept, tmp_path):
    kept("bit_depth", *NAMES)
    task = task_of(tmp_path)
    results = read_record(Workdir(task.workdir).results, ())
    results["warnings"] = ["bit_depth has collapsed", f"{NAMES[0]} has collapsed", "the attack did not take"]
    write_record(Workdir(task.workdir).results, results)
    assert state.measured(task)["warnings"] == results["warnings"][1:]


def test_others_than_are_asked_for_are_nothing(kept, tmp_path):
    assert state.measured(task_of(tmp_path)) is None
    kept("bit_depth")
    assert state.measured(task_of(tmp_path)) is None


@pytest.mark.parametrize(
    ("field", "value", "counts"),
    [
        ("defense.shrinkpad.pad", 1, False),
        ("defense.jpeg.quality", 50, True),  # of a defense that is not there yet
        ("defense.sup_weight", 0.0, False),
        ("victim.epochs", 3, False),
        ("run.log_every", 3, True),
    ],
)
def test_what_was_measured_with_other_settings_does_not(kept, tmp_path, field, value, counts):
    kept("refine", "shrinkpad")
    assert (state.measured(task_of(tmp_path, **{field: value})) is not None) == counts


def test_what_was_kept_before_a_defense_had_strengths_counts(tmp_path):
    field = "defense.bti_dbf_p.sweep"
    task = task_of(tmp_path, ("bti_dbf_p",))
    own = {name: value for name, value in task.settings["defense"]["bti_dbf_p"].items() if name != "sweep"}
    before = {**task.settings, "defense": {**task.settings["defense"], "bti_dbf_p": own}}
    assert state._same(task, before)
    assert not state._same(task_of(tmp_path, ("bti_dbf_p",), **{field: (2, 3)}), before)


def test_in_which_order_defenses_are_named_makes_no_difference(kept, tmp_path):
    kept(*NAMES)
    assert state.is_done(task_of(tmp_path, NAMES[::-1]))
    assert not state.is_done(task_of(tmp_path, NAMES[1:]))


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """Makes, or changes, a folder of pictures of two classes."""
    monkeypatch.setenv("REFINE_JAX_CACHE", str(tmp_path / "cache"))

    def write(value):
        inputs._read.cache_clear()  # as in the next process
        for name in ("cat", "dog"):
            (tmp_path / "root" / name).mkdir(parents=True, exist_ok=True)
            for number in range(5):
                Image.new("RGB", (8, 8), (value, number, 0)).save(tmp_path / "root" / name / f"{number}.png")
        return {"dataset.name": "folder", "dataset.root": str(tmp_path / "root"), "dataset.image_size": 8}

    yield write
    inputs._read.cache_clear()


def note_hashes(task, **changed):
    """Adds to what is kept of a run what it was made from."""
    path = Workdir(task.workdir).results
    write_record(path, {**read_record(path, ()), "hashes": {**inputs.hashes(task.settings), **changed}})


def test_a_run_of_other_pictures_under_the_same_name_is_not_done(kept, tmp_path, pictures):
    fields = pictures(10)
    kept("jpeg", **fields)
    task = task_of(tmp_path, ("jpeg",), **fields)
    assert not state.is_done(task)  # as the first versions left it: it is not known of which pictures it is
    note_hashes(task)
    assert state.is_done(task)
    assert state.measured(task) is not None
    victim = Workdir(task.victim.workdir)
    victim.victim.mkdir(parents=True)
    of_victim = {"dataset": {"sha256": inputs.hashes(task.settings)["dataset"]}}
    write_record(victim.victim / "stage.json", {"schema": 1, "settings": of_victim, "outcome": {"steps": 1}})
    write_json(victim.settings, task.victim.settings)
    assert state.is_done(task.victim)

    pictures(20)
    assert not state.is_done(task)
    assert not state.is_done(task.victim)
    assert state.measured(task) is None
    said = sweep.describe(plan.Plan((task.victim,), (task,)))
    assert f"{task.name}: was done with other pictures than there are now: put back what was there, or --over" in said

    (tmp_path / "root").rename(tmp_path / "elsewhere")  # what is done counts where its pictures are not
    inputs._read.cache_clear()
    assert state.is_done(task)


def test_a_run_of_other_weights_under_the_same_name_is_not_done(kept, tmp_path, monkeypatch):
    weights = {"kernel": np.zeros(3)}
    imported = types.SimpleNamespace(classifier=types.SimpleNamespace(variables=weights), triggered=None)
    monkeypatch.setattr(inputs.importing, "read", lambda settings, dataset: imported)
    inputs._read.cache_clear()
    fields = {"victim.checkpoint": str(tmp_path / "weights.pt"), "attack.name": "none"}
    kept("jpeg", **fields)
    task = task_of(tmp_path, ("jpeg",), **fields)
    note_hashes(task)
    assert read_record(Workdir(task.workdir).results, ())["hashes"] == {"victim": hash_arrays(weights)}
    assert state.is_done(task)
    weights["kernel"] = np.ones(3)
    inputs._read.cache_clear()
    assert not state.is_done(task)
    assert state.state_of(task).error.startswith("was done with other weights in victim.checkpoint than there are now")
    inputs._read.cache_clear()


def test_of_named_data_sets_and_trained_victims_nothing_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "_read", None)
    assert inputs.hashes(task_of(tmp_path).settings) == {}
