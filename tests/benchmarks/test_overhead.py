"""What benchmarks/overhead.py computes, but for the times themselves."""

import argparse
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import overhead
from refine_jax import fields
from refine_jax.defenses import registry
from refine_jax.errors import SettingError
from refine_jax.training.interruption import Interrupted
from refine_jax.training.parallel import Step
from tests import small_defense


def arguments(**changed):
    given = {"config": "configs/digits.py", "defenses": ["refine"], "size": 16, "devices": 1}
    return argparse.Namespace(**given | changed)


def test_a_training_is_shortened_in_nothing_but_its_length():
    settings = registry.defaults()
    short = overhead.shortened(settings)
    changed = {name for name, value in fields.leaves(short) if value != dict(fields.leaves(settings))[name]}
    ends = {name.rpartition(".")[2] for name in changed}
    assert {end for end in ends if not end.endswith("epochs")} <= {"rounds", "data_fraction", "checked"}
    assert {"epochs", "refine_substitute.copy.epochs", "bti_dbf_p.mask_epochs", "bti_dbf_u.rounds"} <= changed
    assert all(value == overhead.EPOCHS for name, value in fields.leaves(short) if name.endswith("epochs"))
    assert short.keys() == settings.keys()


def test_the_plan_of_every_step_is_noted_and_the_step_stays_what_it_is():
    def make(axis_name):
        return lambda state, data, batch: (state + data[batch["indices"]].sum(), {"loss": state})

    data = jnp.arange(1000.0)
    with overhead.planned() as found:
        step = Step(make)
        state = step.place(jnp.zeros(()))
        for indices in (np.arange(3, dtype=np.int32), np.arange(4, dtype=np.int32), np.array([5, 6, 7], np.int32)):
            state, metrics = step(state, data, {"indices": indices})
    assert (float(state), float(metrics["loss"])) == (3 + 6 + 18, 9)
    assert len(found) == 2  # one program of each size
    assert all(size >= data.nbytes for size in found)
    assert Step(make)._whole is not None
    assert len(found) == 2  # what is compiled later is not noted


def test_kept_is_what_a_defended_classifier_has_beside_the_victim():
    with small_defense.registered():
        defended = small_defense.make()
    own = sum(leaf.size for leaf in jax.tree.leaves(defended.unet_variables)) + small_defense.K
    assert overhead.kept(defended, defended.classifier) == own
    assert overhead.kept(defended.classifier, defended.classifier) == 0


def test_settings_are_those_of_the_configuration_and_what_cannot_be_is_refused():
    resolved = overhead.resolve(arguments(), ["--config.defense.width=3"], "vit")
    # A width of the configuration's own network is none of one that has no width to be set.
    assert (resolved["victim"]["name"], resolved["victim"]["width"], resolved["defense"]["width"]) == ("vit", 64, 3)
    assert overhead.resolve(arguments(), [], "resnet34")["victim"]["width"] == 16
    with pytest.raises(SettingError, match=r"^image size = '16 x 16': allowed: vgg16 needs at least 32 x 32"):
        overhead.resolve(arguments(), [], "vgg16")
    with pytest.raises(SettingError, match=r"^defense.depth = 4: allowed: 1 to 3 for images of 8 x 8"):
        overhead.resolve(arguments(size=8), [], "resnet18")


def test_what_is_measured_of_a_tiny_network_is_in_its_units(capsys):
    small = ["victim.batch_size=4", "defense.batch_size=8", "defense.width=1", "defense.depth=1"]
    given = arguments(defenses=["refine", "gaussian_blur"], size=8, steps=2, rounds=2, seconds=0.0, batch=[1, 3])
    with small_defense.registered():
        resolved = {"tiny": overhead.resolve(given, [f"--config.{field}" for field in small], "tiny")}
        rows = overhead.measure(given, resolved)["tiny"]
    refine, blur = rows["refine"], rows["gaussian_blur"]
    assert refine["trained"] > 0
    assert refine["kept"] > refine["trained"]  # running statistics, and the mapping
    assert (blur["trained"], blur["train"]) == (0, None)
    assert blur["kept"] == 2 * 8 * 8  # what blurs rows and columns
    for of in (refine["train"], *(of["time"] for row in rows.values() for of in row["answers"].values())):
        assert 0 < of["least"] <= of["median"] <= of["greatest"]
    images = 16 * 8 * 8 * 3  # uint8, that the steps of the U-Net look up
    assert refine["step_bytes"] > images + 3 * 4 * refine["trained"]
    assert refine["answers"].keys() == blur["answers"].keys() == {"1", "3"}
    weights = 8 * 8 * 3 * 10 + 10  # of the classifier, numbers
    for name, row in rows.items():
        for batch, of in row["answers"].items():
            # Given are weights and images, float32.
            assert of["victim_bytes"] >= 4 * (weights + int(batch) * 8 * 8 * 3)
            assert of["bytes"] >= 4 * (weights + row["kept"] + int(batch) * 8 * 8 * 3), name
    said = capsys.readouterr().out
    assert f"tiny, refine: {refine['trained']:,} trained, {refine['kept']:,} kept" in said
    assert said.count("ms more an image") == 4


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--rounds=0", "--rounds = 0: allowed: 1 or more"),
        ("--batch=64,0", "--batch = 0: allowed: 1 or more, each"),
        (
            "--json=nowhere/overhead.json",
            "--json = 'nowhere/overhead.json': allowed: a file in a directory that is there",
        ),
        ("--defenses=refine,refin", "--defenses = 'refin': "),
        ("--config=nowhere.py", "config = 'nowhere.py': "),
        ("--config.defense.widht=3", "defense.widht"),
        ("--round=3x", "--round"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_measured(flag, said, capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        overhead.parse([flag])
    assert said in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("stop", "status", "said"),
    [(KeyboardInterrupt(), 130, "stopped"), (Interrupted("nothing was saved"), 2, "error: nothing was saved")],
)
def test_a_measurement_that_is_stopped_says_so_and_what_was_measured_stays(
    stop, status, said, tmp_path, monkeypatch, capsys
):
    def measure(arguments, resolved, keep):
        keep({"resnet18": {"refine": {"trained": 3}}})
        raise stop

    monkeypatch.setattr(overhead, "measure", measure)
    monkeypatch.setattr(overhead, "keep_compiled", lambda folder: None)
    monkeypatch.setattr("sys.argv", ["overhead", f"--json={tmp_path / 'kept.json'}"])
    level = logging.getLogger("refine_jax").level
    try:
        assert overhead.main() == status
    finally:
        logging.getLogger("refine_jax").setLevel(level)
    assert capsys.readouterr().err == f"{said}\n"
    assert json.loads((tmp_path / "kept.json").read_text())["networks"] == {"resnet18": {"refine": {"trained": 3}}}
