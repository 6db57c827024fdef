"""The configurations of configs/ are what they say they are."""

import pathlib
import runpy

import numpy as np
import pytest

from refine_jax import attacks, settings
from refine_jax.datasets.images import Dataset, Split
from refine_jax.defenses.registry import names
from refine_jax.errors import SettingError
from refine_jax.sweep.__main__ import read_sweep
from refine_jax.sweep.plan import check_images, expand

ROOT = pathlib.Path(__file__).parents[1]


def get_config(name, *variant):
    return runpy.run_path(str(ROOT / "configs" / name))["get_config"](*variant)


@pytest.mark.parametrize("variant", ["", "mini"])
def test_imagenet50_is_possible_with_images_of_224(variant):
    resolved = settings.complete(get_config("imagenet50.py", variant))
    split = Split(np.zeros((128, 224, 224, 3), np.uint8), np.zeros(128, np.int32))
    settings.check(resolved, Dataset("imagenet50", split, split, tuple("0123456789"), (0.5,) * 3, (0.2,) * 3))


def test_imagenet50_is_the_papers_setting():
    resolved = settings.complete(get_config("imagenet50.py"))
    victim, defense, default = resolved["victim"], resolved["defense"], settings.complete(settings.default())
    assert resolved["dataset"].items() >= {"name": "imagenet50", "classes": None, "per_class": None}.items()
    assert (victim["name"], victim["width"], victim["batch_size"]) == ("imagenet_resnet18", 64, 128)
    assert (defense["width"], defense["batch_size"], defense["epochs"]) == (32, 64, 150)
    # All else is as on CIFAR-10.
    assert {**victim, "name": "resnet18"} == default["victim"]
    assert {**defense, "width": 64, "batch_size": 256} == default["defense"]


def test_an_unknown_variant_of_imagenet50_is_refused():
    with pytest.raises(SettingError, match=r"config = 'configs/imagenet50.py:tiny': allowed: .*imagenet50.py:mini"):
        get_config("imagenet50.py", "tiny")


@pytest.mark.parametrize("variant", ["", "mini"])
def test_defend_is_the_papers_defense_or_the_demos_for_a_classifier_that_is_given(variant):
    config = get_config("defend.py", variant)
    config.victim.checkpoint = "given.pth"
    resolved = settings.complete(config)
    assert (resolved["dataset"]["name"], resolved["attack"]["name"]) == ("folder", "none")
    like = get_config("digits.py") if variant else settings.default()
    assert resolved["defense"] == settings.complete(like)["defense"]


def test_defend_without_a_checkpoint_is_told_so():
    with pytest.raises(SettingError, match=r"attack.name = 'none': allowed: badnets, .*with victim.checkpoint"):
        settings.complete(get_config("defend.py"))
    with pytest.raises(SettingError, match=r"config = 'configs/defend.py:tiny'"):
        get_config("defend.py", "tiny")


def test_the_small_cifar_gives_each_attack_what_it_needs():
    config = get_config("cifar.py", "mini")

    def resolved(name):
        config.attack.name = name
        values = settings.complete(config)
        return values["victim"]["epochs"], values["attack"]["rate"], values["attack"][name].get("cover_rate")

    assert resolved("badnets") == (2, None, None)
    assert resolved("wanet") == (6, None, None)
    assert resolved("physical") == (6, None, None)
    assert resolved("label_consistent") == (4, 0.8, None)
    assert resolved("adaptive_patch") == (6, 0.03, 0.06)
    config.victim.epochs = 3
    assert resolved("wanet")[0] == 3


@pytest.mark.parametrize("variant", ["", ":mini"])
@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "sweeps").glob("*.py")), ids=lambda file: file.stem)
def test_sweeps_are_of_runs_that_can_be(file, variant, tmp_path):
    plan = expand(read_sweep(f"{file}{variant}"), tmp_path)
    seeds = 1 if file.stem in ("attacks", "bti_dbf_p", "defenses") else 3
    assert len({run.seed for run in plan.runs}) == seeds
    assert f"--config=configs/sweeps/{file.name}{variant} " in file.read_text()
    own = file.stem in ("adaptive", "attacks", "defenses", "networks")
    assert len(plan.victims) == (len(plan.runs) if own else seeds)
    if plan.runs[0].settings["dataset"]["name"] == "digits":  # they are always there
        check_images(plan)


def test_the_sweep_over_attacks_is_of_all_with_what_each_needs(tmp_path):
    runs = expand(read_sweep(f"{ROOT / 'configs' / 'sweeps' / 'attacks.py'}:mini"), tmp_path).runs
    assert [run.values["attack.name"] for run in runs] == list(attacks.names())
    epochs = {run.values["attack.name"]: run.settings["victim"]["epochs"] for run in runs}
    assert (epochs["badnets"], epochs["wanet"]) == (2, 6)


def test_the_comparison_is_of_all_that_see_as_much_of_the_victim(tmp_path):
    runs = expand(read_sweep(f"{ROOT / 'configs' / 'sweeps' / 'defenses.py'}:mini"), tmp_path).runs
    assert [run.values["attack.name"] for run in runs] == list(attacks.names())
    split = Split(np.zeros((50_000, 32, 32, 3), np.uint8), np.zeros(50_000, np.int32))
    for run in runs:
        assert {*run.settings["defense"]["names"], "refine_substitute", "refine_zeroth_order"} == set(names())
        settings.check(run.settings, Dataset("cifar10", split, split, tuple("0123456789"), (0.5,) * 3, (0.2,) * 3))


def test_sweeps_contain_the_setting_that_they_vary(tmp_path):
    for name, values in (("contrastive", (0.1, 0.1)), ("unet", (4, 64)), ("data_fraction", (1.0,))):
        plan = expand(read_sweep(str(ROOT / "configs" / "sweeps" / f"{name}.py")), tmp_path)
        assert values in [tuple(run.values.values()) for run in plan.runs]
