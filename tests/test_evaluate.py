"""python -m refine_jax.evaluate: the figures of a run again, and on other images and triggers."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from refine_jax import asking, evaluate, evaluation, export, function_classifier, pipeline
from refine_jax.attacks import kept
from refine_jax.errors import DataError, SettingError, WorkdirError
from refine_jax.report.tables import text_table
from tests import small_defense
from tests.small_run import (
    EXPORT_DEFENSES,
    SIDE,
    config,
    figures,
    tiny_fixture,  # noqa: F401
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("run") / "work"


@pytest.fixture
def done(folder, monkeypatch):
    """A whole run with its export, made once."""
    monkeypatch.setattr(pipeline, "export_defenses", EXPORT_DEFENSES)
    return pipeline.run(config(), str(folder))


def measure(*arguments):
    return evaluate.main([str(argument) for argument in arguments])


def test_an_exports_figures_are_those_of_its_run(done, folder, tiny, tmp_path):
    output, images = tmp_path / "figures.json", tmp_path / "images.npz"
    wanted = {name: done["defenses"]["refine"][name] for name in ("ba", "asr", "asr_all", "mapped_asr", "ra", "der")}
    for data in ((), ("--data=made",)):
        arguments = (f"--export={folder / 'export'}", f"--attack={folder / 'attack'}", *data)
        results = measure(*arguments, f"--output={output}", f"--images={images}")
        assert results["no_defense"] == figures(done)
        assert wanted.items() <= results["defenses"]["refine"].items()
        assert results["attack"]["name"] == "badnets"
        assert json.loads(output.read_text()) == results
    written = np.load(images)
    np.testing.assert_array_equal(written["images"], tiny.test.images)
    np.testing.assert_array_equal(written["labels"], tiny.test.labels)
    np.testing.assert_array_equal(written["triggered"], kept.load(folder / "attack").attack.trigger(tiny.test.images))
    assert written["target"] == 0


def test_a_victim_alone(done, folder):
    results = measure(f"--victim={folder}", f"--attack={folder / 'attack'}")
    assert results["no_defense"] == figures(done)
    assert results["defenses"] == {}


def test_an_attack_by_name_with_an_option(done, folder):
    by_name = measure(f"--victim={folder}", "--attack=badnets")
    assert by_name["no_defense"] == figures(done)  # the white patch, as in the run
    changed = measure(f"--victim={folder}", "--attack=blended", "--option=alpha=1", "--target=2")
    assert changed["attack"]["options"]["alpha"] == 1
    assert changed["attack"]["target"] == 2
    # All triggered images are the one picture: they get one answer.
    assert changed["no_defense"]["counts"]["asr_all"][0] in (0, 50)


def write(place, images, folders):
    for i, (image, name) in enumerate(zip(images, folders, strict=True)):
        (place / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / name / f"{i}.png")


def test_folders_of_pictures(done, folder, tiny, tmp_path):
    test = tiny.test
    triggered = kept.load(folder / "attack").attack.trigger(test.images)
    write(tmp_path / "clean", test.images, ["abcd"[label] for label in test.labels])
    write(tmp_path / "triggered", triggered, [str(label) for label in test.labels])
    write(tmp_path / "flat", test.images, ["."] * len(test))
    export = f"--export={folder / 'export'}"
    results = measure(export, f"--data={tmp_path / 'clean'}", f"--triggered={tmp_path / 'triggered'}", "--target=0")
    # Pictures come in another order, and so does what is summed up for W1.
    assert results["no_defense"] == figures(done) | {"w1": pytest.approx(figures(done)["w1"])}
    assert results["defenses"]["refine"]["counts"] == done["defenses"]["refine"]["counts"]
    results = measure(export, f"--data={tmp_path / 'flat'}", f"--triggered={tmp_path / 'triggered'}", "--target=0")
    assert results["defenses"]["refine"]["ba"] is None
    assert results["defenses"]["refine"]["asr"] == done["defenses"]["refine"]["asr"]


def test_an_export_of_a_function_is_measured_behind_its_defense_alone(tmp_path):
    images, triggered = small_defense.picture(40), small_defense.picture(30, seed=1)
    with small_defense.registered():
        defended = small_defense.make()
    rng, gray = np.random.default_rng(0), defended.transform(images / np.float32(255)).mean(axis=0)
    weights = rng.normal(size=(gray.size, 4)).astype(np.float32)
    # Around the mean image, so that no class is answered for all.
    function = lambda x: (x - gray).reshape(x.shape[0], -1) @ weights  # noqa: E731
    classifier = function_classifier.wrap(function, gray.shape[:2])
    defended = dataclasses.replace(defended, classifier=classifier)
    export.save(defended, tmp_path / "export")
    labels, triggered_labels = rng.integers(0, 4, 40), rng.integers(0, 4, 30)
    shown = (images, labels, triggered, 1, np.asarray(defended.permutation), triggered_labels)
    wanted = evaluation.measure(asking.compiled(defended), *shown)
    assert 0 < wanted["ba"] < 1
    assert 0 < wanted["asr"] < 1
    write(tmp_path / "clean", images, map(str, labels))
    write(tmp_path / "triggered", triggered, map(str, triggered_labels))
    asked = [f"--{flag}={tmp_path / name}" for flag, name in (("data", "clean"), ("triggered", "triggered"))]
    results = measure(f"--export={tmp_path / 'export'}", *asked, "--target=1")
    assert results["defenses"]["defended"]["counts"] == wanted["counts"]
    assert results["defenses"]["defended"]["answers"] == wanted["answers"]
    assert {*results["no_defense"]} == {*wanted, "w1", "w1_images"}
    assert all(results["no_defense"][name] is None for name in ("ba", "asr", "asr_all", "ra", "answers", "w1"))
    assert results["defenses"]["defended"]["der"] is None
    table = text_table(results)
    assert re.search(r"^BA +- +[\d.]+ +\[", table, re.MULTILINE)
    assert re.search(r"^DER +- +-$", table, re.MULTILINE)


def test_without_class_names_folders_are_numbers_of_classes_that_there_are(done, folder, tiny, tmp_path):
    export = shutil.copytree(folder / "export", tmp_path / "export")
    manifest = json.loads((export / "manifest.json").read_text())
    (export / "manifest.json").write_text(json.dumps(manifest | {"class_names": None}))
    for name, folders in (("known", ["0", "3"]), ("unknown", ["0", "4"]), ("named", ["0", "d"])):
        write(tmp_path / name, tiny.test.images[:2], folders)

    def measured(data, triggered):
        places = (f"--data={tmp_path / data}", f"--triggered={tmp_path / triggered}")
        return measure(f"--export={export}", *places, "--target=1")["defenses"]["refine"]

    assert measured("known", "known")["counts"]["asr"][1] == 2
    for data, triggered, kind, message in (
        ("known", "unknown", DataError, "--triggered has the class 4, and the classifier knows 4"),
        ("unknown", "known", DataError, "--data has the class 4, and the classifier knows 4"),
        ("known", "named", SettingError, "folder of --triggered = 'd': allowed: a class's number, 0 to 999999, as no"),
    ):
        with pytest.raises(kind, match=message):
            measured(data, triggered)


def test_what_cannot_be_is_refused_in_a_sentence(done, folder, tmp_path):
    export = f"--export={folder / 'export'}"
    write(tmp_path / "named", np.zeros((2, SIDE, SIDE, 3), np.uint8), ["a", "cc"])
    write(tmp_path / "numbered", np.zeros((2, SIDE, SIDE, 3), np.uint8), ["0", "7"])
    (tmp_path / "empty").mkdir()
    for arguments, kind, message in (
        ((f"--export={tmp_path}",), DataError, "holds no export"),
        ((export, f"--output={tmp_path / 'none' / 'x.json'}"), SettingError, "--output = .*a folder that is there"),
        ((export, f"--images={tmp_path}"), SettingError, "--images = .*a file in a folder"),
        ((f"--victim={tmp_path}",), WorkdirError, "is no working directory with a victim"),
        ((export, "--data=mede"), SettingError, "--data = 'mede': allowed: .*did you mean 'made'"),
        ((export, f"--data={tmp_path / 'named'}"), SettingError, "folder of --data = 'cc': allowed: a, b, c, d, or"),
        ((export, f"--data={tmp_path / 'numbered'}"), SettingError, "folder of --data = '7': allowed: .* 0 to 3"),
        ((export, f"--data={tmp_path / 'empty'}"), DataError, "holds no picture"),
        ((export, "--attack=badnet"), SettingError, "did you mean 'badnets'"),
        ((export, "--attack=badnets", "--option=weight"), SettingError, "--option = 'weight': allowed: NAME=VALUE"),
        ((export, "--attack=badnets", "--option=wait=1"), SettingError, "did you mean 'weight'"),
        ((export, "--attack=badnets", "--target=4"), SettingError, "--target = 4: allowed: a class, 0 to 3"),
        ((export, "--target=1"), SettingError, "--attack = None"),
        ((export, f"--attack={folder / 'attack'}", "--target=1"), SettingError, "those kept in it"),
    ):  # fmt: skip
        with pytest.raises(kind, match=message):
            measure(*arguments)


def test_unknown_flags_end_with_the_usage(capsys):
    with pytest.raises(SystemExit, match="2"):
        measure("--export=x", "--attak=badnets")
    assert "unrecognized arguments: --attak=badnets" in capsys.readouterr().err
