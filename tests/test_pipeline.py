"""The stages of a run, from images to results.json, with networks and images small enough to compile at once."""

import dataclasses
import json
import os
import shutil

import jax
import numpy as np
import pytest
from PIL import Image
from scipy.special import softmax

from refine_jax import asking, doubts, lock, pipeline, transport, victim
from refine_jax.attacks import kept
from refine_jax.datasets import registry as datasets
from refine_jax.datasets.images import NO_LABEL, Dataset, Split
from refine_jax.errors import RefineError, SettingError, StorageError, WorkdirError
from refine_jax.files import read_record, write_record
from refine_jax.keys import named_key
from refine_jax.report.tables import text_table
from refine_jax.training import checkpoints
from tests.small_run import (  # noqa: F401
    EXPORT_DEFENSES,
    SIDE,
    config,
    contents,
    copied,
    done_fixture,
    figures,
    folder_fixture,
    tiny_fixture,
)


def test_everything_lies_where_it_should(done, folder, tiny):
    written = json.loads((folder / "results.json").read_text())
    assert len(written.pop("file_sha256")) == 64
    assert written == done
    assert done["warnings"] == doubts.find(done["no_defense"], done["defenses"], tiny.test.labels)
    assert json.loads((folder / "settings.json").read_text()) == done["settings"]
    assert done["schema"] == 1
    assert {"jax", "commit", "device"} <= {*done["environment"]}
    refine = done["defenses"]["refine"]
    assert {"ba", "asr", "asr_all", "mapped_asr", "ra", "der", "counts", "ci95"} <= {*refine}
    assert {"train_seconds", "train_images_per_second", "parameters"} <= {*refine}
    # The whole test set, the last partial batch too.
    others = int((tiny.test.labels != 0).sum())
    for measured in (done["no_defense"], refine):
        assert measured["counts"]["ba"][1] == measured["counts"]["asr_all"][1] == len(tiny.test)
        assert measured["counts"]["asr"][1] == measured["counts"]["ra"][1] == others
    with Image.open(folder / "attack" / "contact_sheet.png") as sheet:
        assert sheet.width > 3 * SIDE
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["stage"] == "victim"] == [*range(1, 25)]
    assert [row["step"] for row in rows if row["stage"] == "refine"] == [1, 2, 3]


def test_the_answers_that_the_figures_are_counted_from_are_kept(done, folder, tiny, tmp_path, monkeypatch):
    labels = tiny.test.labels
    mapped = checkpoints.read(folder / "defense" / "refine" / "checkpoints")[0]["permutation"][0]
    for name, measured in {"no_defense": done["no_defense"], **done["defenses"]}.items():
        with np.load(folder / "evaluation" / f"{name}.npz") as file:
            clean, triggered = file["clean"], file["triggered"]
            outputs = [file[f"{kind}_scores"] for kind in ("clean", "triggered")]
        np.testing.assert_array_equal(outputs[0].argmax(axis=1), clean)  # there are fewer than a sample has
        if name == "no_defense":  # whose scores are logits
            outputs = [softmax(scores, axis=1) for scores in outputs]
        assert measured["w1"] == pytest.approx(transport.wasserstein_1(*outputs), abs=1e-6)
        assert measured["w1_images"] == len(labels)
        assert measured["counts"]["ba"] == [(clean == labels).sum(), len(labels)]
        assert measured["counts"]["asr_all"] == [(triggered == 0).sum(), len(labels)]
    others = (labels != 0) & (labels != mapped)
    counts = done["defenses"]["refine"]["counts"]
    assert counts["mapped_asr"] == [(triggered[others] == mapped).sum(), others.sum()]

    # Figures that were lost are counted again; nobody is asked.
    work = copied(folder, tmp_path)
    for path in (work / "results.json", work / "evaluation" / "refine.json", work / "evaluation" / "no_defense.json"):
        path.unlink()
    monkeypatch.setattr(asking, "answer", None)
    assert pipeline.run(config(), str(work))["defenses"]["refine"]["counts"] == counts


def test_what_is_done_is_not_done_again(done, folder, monkeypatch):
    monkeypatch.setattr(victim, "train", None)
    monkeypatch.setattr(pipeline, "DEFENSES", {"refine": pipeline.DEFENSES["refine"]})
    monkeypatch.setattr(pipeline.DEFENSES["refine"], "fit", None)
    assert pipeline.run(config(), str(folder)) == done


def test_the_same_settings_give_the_same_run(done, tmp_path):
    again = pipeline.run(config(), str(tmp_path))
    assert again["hashes"] == done["hashes"]
    assert figures(again) == figures(done)
    other = pipeline.run(config(seed=1), str(tmp_path / "other"))
    assert not {*other["hashes"].values()} & {*done["hashes"].values()}


def test_other_settings_are_refused_by_name_and_deleted_on_demand(done, folder, tmp_path):
    work = copied(folder, tmp_path)
    with pytest.raises(WorkdirError, match=r"stage 'defend \(refine\)'.*defense.sup_weight: 0.1 -> 0.2"):
        pipeline.run(config(defense__sup_weight=0.2), str(work))
    with pytest.raises(WorkdirError, match=r"stage 'victim'.*attack.target: 0 -> 2"):
        pipeline.run(config(attack__target=2), str(work))
    assert read_record(work / "results.json", ()) == done  # nothing was touched

    assert pipeline.run(config(defense__sup_weight=0.3), str(work), ["victim"], overwrite=True) is None
    assert not (work / "results.json").exists()  # is of a defense that is not there any more
    changed = pipeline.run(config(defense__sup_weight=0.2), str(work), overwrite=True)
    assert changed["hashes"]["victim"] == done["hashes"]["victim"]
    assert changed["hashes"]["refine"] != done["hashes"]["refine"]
    changed = pipeline.run(config(attack__target=2), str(work), overwrite=True)
    assert changed["attack"]["target"] == 2
    assert not {changed["hashes"][name] for name in ("victim", "refine")} & {*done["hashes"].values()}


def test_an_attack_that_was_left_behind_is_not_planted_for_another(done, folder, tmp_path):
    """As of a victim that was deleted by hand."""
    work = copied(folder, tmp_path)
    for made in ("victim", "defense"):
        shutil.rmtree(work / made)
    with pytest.raises(WorkdirError, match=r"attack holds another attack \(.*target: 0 -> 2\): delete it"):
        pipeline.run(config(attack__target=2), str(work))
    assert pipeline.run(config(), str(work), ["victim"]) is None
    assert read_record(work / "victim" / "stage.json", ())["outcome"]["attack_sha256"] == done["hashes"]["attack"]


def test_what_the_user_has_put_there_is_not_deleted(done, folder, tmp_path):
    work = copied(folder, tmp_path)
    (work / "report").mkdir()
    (work / "report" / "thesis.tex").write_text("mine")
    before = contents(work)
    for changed in ({"attack__target": 2}, {"defense__sup_weight": 0.2}):
        with pytest.raises(WorkdirError, match=r"report is there and has no manifest.json.*move it away"):
            pipeline.run(config(**changed), str(work), overwrite=True)
        kept = {path: time for path, time in contents(work).items() if path.name not in ("lock", work.name)}
        assert kept.items() <= before.items()
        assert read_record(work / "results.json", ()) == done


def test_many_defenses_share_one_victim(done, folder, tmp_path):
    settings, before = config(seed=7, victim__workdir=str(folder)), contents(folder)
    shared = pipeline.run(settings, str(tmp_path))
    assert figures(shared) == figures(done)
    assert {name: shared["hashes"][name] for name in ("attack", "victim")} == {
        name: done["hashes"][name] for name in ("attack", "victim")
    }
    assert shared["hashes"]["refine"] != done["hashes"]["refine"]  # the seed is the defense's
    assert not (tmp_path / "victim").exists()
    assert contents(folder) == before
    with pytest.raises(SettingError, match=r"victim.workdir = .*these settings; of that one victim.epochs: 4 -> 5$"):
        pipeline.run(config(victim__workdir=str(folder), victim__epochs=5), str(tmp_path / "x"), overwrite=True)
    assert (folder / "results.json").exists()
    with pytest.raises(SettingError, match=r"victim.workdir = .*empty.*: allowed: .* whose victim is trained"):
        pipeline.run(config(victim__workdir=str(tmp_path / "empty")), str(tmp_path / "y"))


def test_what_was_altered_is_noticed(done, folder, tmp_path):
    work = copied(folder, tmp_path)
    (work / "results.json").unlink()
    with np.load(work / "attack" / "arrays.npz") as file:
        arrays = dict(file)
    np.savez_compressed(work / "attack" / "arrays.npz", **{**arrays, "indices": arrays["indices"][::-1]})
    with pytest.raises(WorkdirError, match="SHA-256"):
        pipeline.run(config(), str(work))

    stage = work / "victim" / "stage.json"
    stage.write_text(stage.read_text().replace(done["hashes"]["victim"], "0" * 64))
    with pytest.raises(WorkdirError, match=r"stage\.json is damaged \(it is not what was written\)"):
        pipeline.run(config(), str(work))
    record = json.loads(stage.read_text())
    record.pop("file_sha256")
    write_record(stage, record)
    np.savez_compressed(work / "attack" / "arrays.npz", **arrays)
    with pytest.raises(WorkdirError, match=r"weights in .*victim.*checkpoints are not those"):
        pipeline.run(config(), str(work))


@pytest.mark.filterwarnings("ignore:Exception ignored:pytest.PytestUnraisableExceptionWarning")  # of Orbax's threads
def test_a_stage_whose_last_checkpoint_is_damaged_can_be_finished_again(done, folder, tmp_path):
    work = copied(folder, tmp_path)
    (work / "results.json").unlink()
    last = work / "victim" / "checkpoints" / "24"
    (last / "meta" / "metadata").write_text("{")
    with pytest.raises(WorkdirError, match=rf"{last} cannot be read .*: delete it, and the stage that has written it"):
        pipeline.run(config(), str(work))
    shutil.rmtree(last)
    assert pipeline.run(config(), str(work))["hashes"] == done["hashes"]


@pytest.mark.filterwarnings("ignore:Exception ignored:pytest.PytestUnraisableExceptionWarning")
def test_a_disk_that_is_full_and_then_is_not_costs_no_step(done, small_disk):
    rest = small_disk / "rest"
    rest.write_bytes(bytes(shutil.disk_usage(small_disk).free - 150_000))
    steps = config()
    steps.run.checkpoint_steps, steps.run.keep_checkpoints = 1, 50
    with pytest.raises(StorageError, match="No space left on device"):
        pipeline.run(steps, str(small_disk / "work"), ["victim"])
    saved = os.listdir(small_disk / "work" / "victim" / "checkpoints")
    assert 1 <= max(int(name) for name in saved if name.isdigit()) < 24
    rest.unlink()
    assert pipeline.run(config(), str(small_disk / "work"), ["victim"]) is None
    stage = json.loads((small_disk / "work" / "victim" / "stage.json").read_text())
    assert stage["outcome"]["victim_sha256"] == done["hashes"]["victim"]
    rows = [json.loads(line) for line in (small_disk / "work" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [*range(1, 25)]


def test_a_directory_that_another_run_works_in_is_refused(done, folder, tmp_path, monkeypatch):
    work = copied(folder, tmp_path)
    with lock.hold(work / "lock"):
        # In one process the operating system lets both have it; so it is on a file system that knows no locks.
        monkeypatch.setattr(lock, "_lock", lambda file: None)
        with pytest.raises(WorkdirError, match=f"{work} is in use by process"):
            pipeline.run(config(seed=1), str(work), overwrite=True)
    assert read_record(work / "results.json", ()) == done
    assert not (work / "lock").exists()


def test_damaged_results_are_measured_anew(done, folder, tmp_path, caplog):
    work = copied(folder, tmp_path)
    text = (work / "results.json").read_text()
    (work / "results.json").write_text(text.replace('"ba": 0', '"ba": 1', 1))
    assert pipeline.run(config(), str(work), ["evaluate"])["no_defense"] == done["no_defense"]
    assert f"{work / 'results.json'} is damaged" in caplog.text
    assert json.loads(text)["no_defense"] == read_record(work / "results.json", ())["no_defense"]


def test_the_defense_never_reads_a_label(done, folder, tiny, tmp_path, monkeypatch):
    wrong = Split(tiny.train.images, np.roll(tiny.train.labels, 1))
    shuffled = Dataset("made", wrong, tiny.test, tiny.class_names, tiny.mean, tiny.std)
    monkeypatch.setitem(datasets.DATASETS, "made", lambda **_: shuffled)
    again = pipeline.run(config(victim__workdir=str(folder)), str(tmp_path))
    assert again["hashes"]["refine"] == done["hashes"]["refine"]


def test_images_of_a_folder_are_known_by_what_they_are_and_what_was_left_out_is_written(
    done, tiny, tmp_path, monkeypatch
):
    changes = {"counts": {"an empty file": 1}, "files": [["a/b.png", "an empty file"]]}
    for name, images in (("made", "a"), ("moved", "a"), ("changed", "b")):
        of_folder = dataclasses.replace(tiny, sha256=images * 64, changes=changes)
        monkeypatch.setitem(datasets.DATASETS, name, lambda made=of_folder, **_: made)
    assert pipeline.run(config(), str(tmp_path), ["victim"]) is None
    assert json.loads((tmp_path / "dataset.json").read_text()) == {
        "class_names": ["a", "b", "c", "d"],
        "sha256": "a" * 64,
        **changes,
    }
    monkeypatch.setitem(datasets.DATASETS, "made", datasets.DATASETS["moved"])
    assert pipeline.run(config(), str(tmp_path), ["victim"]) is None
    monkeypatch.setitem(datasets.DATASETS, "made", datasets.DATASETS["changed"])
    with pytest.raises(WorkdirError, match=r"stage 'victim'.*dataset.sha256: 'aaa"):
        pipeline.run(config(), str(tmp_path), ["victim"])


def test_figures_of_earlier_test_pictures_are_not_taken_for_those_of_the_folder_as_it_is(tiny, tmp_path, monkeypatch):
    made = config(defense__names=("bit_depth",))
    made.defense.bit_depth.sweep = ()
    borrowing = config(defense__names=("bit_depth",), victim__workdir=str(tmp_path / "victim"))
    borrowing.defense.bit_depth.sweep = ()

    def measure(count, sha256):
        """With the first test images alone; neither victim nor defense is another for that."""
        test = Split(tiny.test.images[:count], tiny.test.labels[:count])
        monkeypatch.setitem(datasets.DATASETS, "made", lambda **_: dataclasses.replace(tiny, test=test, sha256=sha256))
        pipeline.run(made, str(tmp_path / "victim"), ["victim"], overwrite=True)
        return pipeline.run(borrowing, str(tmp_path / "borrowing"), overwrite=True)

    found = {count: measure(count, sha256) for count, sha256 in ((50, "a" * 64), (40, "b" * 64))}
    hashes = [results["hashes"] for results in found.values()]
    assert [of["dataset"] for of in hashes] == ["a" * 64, "b" * 64]
    assert {**hashes[0], "dataset": ""} == {**hashes[1], "dataset": ""}
    for count, results in found.items():
        for figures_of in (results["no_defense"], results["defenses"]["bit_depth"]):
            assert figures_of["counts"]["ba"][1] == count


@pytest.mark.parametrize("unlabeled", ["train", "test"])
def test_a_victim_is_not_trained_without_labels(tiny, tmp_path, monkeypatch, unlabeled):
    there = getattr(tiny, unlabeled)
    bare = dataclasses.replace(tiny, **{unlabeled: Split(there.images, np.full_like(there.labels, NO_LABEL))})
    monkeypatch.setitem(datasets.DATASETS, "made", lambda **_: bare)
    with pytest.raises(SettingError, match=r"dataset.name = 'made': allowed: images with labels"):
        pipeline.run(config(), str(tmp_path))
    assert not (tmp_path / "victim").exists()


def test_a_victim_of_another_run_is_imported_and_measured_by_what_is_known(done, folder, tiny, tmp_path, monkeypatch):
    stages = ["victim", "defend", "evaluate"]
    imported = config(victim__checkpoint=str(folder))
    results = pipeline.run(imported, str(tmp_path / "labeled"), stages)
    assert results["hashes"]["victim"] == done["hashes"]["victim"]
    assert figures(results) == figures(done)  # the same weights, preprocessing, trigger and images
    assert results["victim"]["imported"]["format"] == "refine-jax"
    assert not (tmp_path / "labeled" / "attack").exists()
    with monkeypatch.context() as patch:
        patch.setattr(pipeline.import_stage, "keep", None)
        assert pipeline.run(imported, str(tmp_path / "labeled"), stages) == results

    # Neither labels nor a trigger.
    bare = {
        name: Split(split.images, np.full_like(split.labels, NO_LABEL))
        for name, split in vars(tiny).items()
        if name in ("train", "test")
    }
    unlabeled = dataclasses.replace(tiny, **bare, class_names=(), sha256="c" * 64)
    monkeypatch.setitem(datasets.DATASETS, "made", lambda **_: unlabeled)
    imported.attack.name = "none"
    results = pipeline.run(imported, str(tmp_path / "unlabeled"), stages)
    assert set(results["no_defense"]["counts"].values()) == {None}
    refine = results["defenses"]["refine"]
    assert [name for name, count in refine["counts"].items() if count] == ["agreement"]
    assert refine["counts"]["agreement"][1] == len(tiny.test)
    assert refine["agreement"] == refine["counts"]["agreement"][0] / len(tiny.test)
    assert f"{100 * refine['agreement']:.2f}" in text_table(results)


def test_stages_one_by_one(done, tmp_path):
    with pytest.raises(WorkdirError, match="stage 'victim' does that"):
        pipeline.run(config(), str(tmp_path), ["defend"])
    assert pipeline.run(config(), str(tmp_path), ["victim"]) is None
    with pytest.raises(WorkdirError, match="stage 'defend' does that"):
        pipeline.run(config(), str(tmp_path), ["evaluate"])
    assert pipeline.run(config(), str(tmp_path), ["defend"]) is None
    assert pipeline.run(config(), str(tmp_path), ["evaluate"])["hashes"] == done["hashes"]
    with pytest.raises(RefineError, match=r"stages = 'fit': allowed: victim, defend, evaluate, export, report"):
        pipeline.run(config(), str(tmp_path), ["fit"])


def test_an_attack_that_needs_a_benign_classifier_gets_one_and_keeps_its_images(tiny, tmp_path, monkeypatch):
    settings = config()
    settings.attack.name, settings.attack.label_consistent.steps = "label_consistent", 2
    results = pipeline.run(settings, str(tmp_path))
    benign = results["attack"]["benign_classifier"]
    assert benign["counts"]["ba"][1] == len(tiny.test)
    assert 0.5 < benign["ba"] <= 1
    planted = kept.load(tmp_path / "attack")
    assert (tiny.train.labels[planted.indices] == 0).all()
    assert planted.images.shape == (len(planted.indices), SIDE, SIDE, 3)
    assert not (tmp_path / "attack" / "adversarial").exists()

    # A victim that is trained again meets the images that were kept; the benign classifier is not asked again.
    monkeypatch.setattr(victim, "train_benign", None)
    key = named_key(settings.seed, "attack/poison")
    poisoned = planted.poison(tiny.train.images, tiny.train.labels, key)
    np.testing.assert_array_equal(poisoned.labels, tiny.train.labels)
    changed = (poisoned.images != tiny.train.images).any(axis=(1, 2, 3))
    np.testing.assert_array_equal(np.flatnonzero(changed), planted.indices)
    stage = tmp_path / "victim" / "stage.json"
    write_record(stage, {**read_record(stage, ()), "outcome": None})
    assert pipeline.run(settings, str(tmp_path))["hashes"] == results["hashes"]


@pytest.mark.parametrize(
    ("processes", "index", "stages", "expected"),
    [
        (1, 0, pipeline.STAGES, [["victim", "defend", "evaluate", "export", "report"]]),
        (2, 0, pipeline.STAGES, [["victim"], ["defend", "evaluate", "export", "report"]]),
        (2, 1, pipeline.STAGES, [["victim"], ["defend"]]),
        (2, 0, ["evaluate"], [["evaluate"]]),
        (2, 1, ["evaluate"], [[]]),
    ],
)
def test_processes_take_as_many_turns_and_the_first_does_alone_what_is_no_training(
    monkeypatch, processes, index, stages, expected
):
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    monkeypatch.setattr(jax, "process_index", lambda: index)
    assert pipeline.turns(stages) == expected
