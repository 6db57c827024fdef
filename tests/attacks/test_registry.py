"""What a user gets wrong, and how it is said."""

import json
import re

import numpy as np
import pytest

from refine_jax import attacks
from refine_jax.errors import SettingError


def test_there_are_the_seven():
    seven = ("badnets", "blended", "wanet", "physical", "batt", "label_consistent", "adaptive_patch")
    assert attacks.names() == seven


def test_defaults_are_the_papers():
    rates = {name: attacks.build(name, 32).rate for name in attacks.names()}
    assert rates.pop("label_consistent") == 0.25
    assert rates.pop("adaptive_patch") == 0.01
    assert set(rates.values()) == {0.1}
    assert attacks.options("wanet") == {"k": 4, "s": 0.5, "control_grid": str, "noise": True}
    assert attacks.options("label_consistent").items() >= {"eps": 8.0, "alpha": 1.5, "steps": 100}.items()
    assert attacks.options("adaptive_patch")["cover_rate"] == 0.02


def test_none_is_an_options_default():
    attack = attacks.build("blended", 32, alpha=None)
    assert attack.options["alpha"] == 0.1


def test_numbers_of_numpy_are_numbers():
    attack = attacks.build("badnets", np.int64(32), target=np.int32(1), rate=np.float32(0.5), seed=np.int64(2))
    assert attack.image_size == (32, 32)
    assert attacks.describe(attack) == {
        "name": "badnets",
        "target": 1,
        "rate": 0.5,
        "image_size": [32, 32],
        "seed": 2,
        "options": {"pattern": None, "weight": None},
    }


@pytest.mark.parametrize(
    ("name", "given", "kept"),
    [
        ("blended", {"alpha": np.float32(0.25)}, {"alpha": 0.25}),
        ("label_consistent", {"steps": np.int64(5)}, {"steps": 5}),
        ("adaptive_patch", {"alphas": tuple(np.float32([0.5, 0.25, 1, 1]))}, {"alphas": [0.5, 0.25, 1, 1]}),
    ],
)
def test_numbers_of_numpy_are_kept_as_json_values(name, given, kept):
    attack = attacks.build(name, 32, **given)
    described = json.loads(json.dumps(attacks.describe(attack)))
    assert described["options"].items() >= kept.items()
    attack.trigger(np.zeros((1, 32, 32, 3), np.uint8))


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("badnet", {}, r"attack\.name = 'badnet': .*badnets.*did you mean 'badnets'"),
        ("badnets", {"image_size": 15}, r"attack\.image_size = 15: .*at least 16"),
        ("badnets", {"image_size": 32.5}, r"attack\.image_size = 32\.5"),
        ("badnets", {"image_size": (32, 32, 3)}, r"attack\.image_size"),
        ("badnets", {"target": -1}, r"attack\.target = -1"),
        ("badnets", {"target": 1.5}, r"attack\.target = 1\.5"),
        ("badnets", {"seed": -1}, r"seed = -1"),
        ("badnets", {"rate": 0}, r"attack\.rate = 0: allowed: a number above 0 and at most 1"),
        ("badnets", {"rate": 1.01}, r"attack\.rate = 1\.01"),
        ("badnets", {"rate": float("nan")}, r"attack\.rate = nan"),
        ("badnets", {"patern": 1}, r"attack\.badnets\.patern = 1: .*pattern, weight \(did you mean 'pattern'\?\)"),
        ("badnets", {"alpha": 0.1}, r"attack\.badnets\.alpha = 0\.1: .*no such option"),
        ("badnets", {"pattern": [[1, 2], [3]]}, r"attack\.badnets\.pattern = 'a list': allowed: a picture file, or"),
        ("badnets", {"weight": [[1, 2], [3]]}, r"attack\.badnets\.weight = 'a list': allowed: a number, or an array"),
        ("wanet", {"control_grid": [[1, 2], [3]]}, r"attack\.wanet\.control_grid = 'a list': allowed: \[1, 2, k, k\]"),
        ("badnets", {"pattern": np.zeros((33, 3), np.uint8)}, r"attack\.badnets\.pattern = \(33, 3\): .*\(32, 32\)"),
        ("badnets", {"pattern": "nowhere.png"}, r"attack\.badnets\.pattern = 'nowhere\.png': .*exists"),
        ("badnets", {"pattern": np.full((3, 3), 1.5)}, r"attack\.badnets\.pattern = .*floats from 0 to 1"),
        ("badnets", {"pattern": np.full((3, 3), 256)}, r"attack\.badnets\.pattern = .*integers from 0 to 255"),
        ("badnets", {"pattern": np.zeros((3, 3, 2))}, r"attack\.badnets\.pattern = .*shape"),
        ("badnets", {"weight": 1.5}, r"attack\.badnets\.weight = 1\.5"),
        ("badnets", {"weight": np.ones((5, 5))}, r"attack\.badnets\.weight = \(5, 5\): .*\(3, 3\) or \(32, 32\)"),
        ("badnets", {"weight": np.full((3, 3), 2.0)}, r"attack\.badnets\.weight = \(2\.0, 2\.0\)"),
        ("badnets", {"weight": np.zeros((3, 3))}, r"attack\.badnets\.weight = 'zeros alone'"),
        ("badnets", {"pattern": np.zeros((32, 32), np.uint8)}, r"attack\.badnets\.pattern = 'zeros alone'"),
        ("blended", {"alpha": 0}, r"attack\.blended\.alpha = 0"),
        ("blended", {"pattern": np.zeros((16, 16))}, r"attack\.blended\.pattern = \(16, 16\): .*\(32, 32\)"),
        ("wanet", {"k": 1}, r"attack\.wanet\.k = 1: .*at least 2"),
        ("wanet", {"s": -0.5}, r"attack\.wanet\.s = -0\.5"),
        ("wanet", {"s": float("inf")}, r"attack\.wanet\.s = inf"),
        ("wanet", {"noise": 2}, r"attack\.wanet\.noise = 2: .*True or False"),
        ("wanet", {"control_grid": np.zeros((4, 4, 2))}, r"attack\.wanet\.control_grid = .*\(4, 4, 2\)"),
        ("wanet", {"control_grid": "nowhere.npy"}, r"attack\.wanet\.control_grid = 'nowhere\.npy'"),
        ("batt", {"angle": "16"}, r"attack\.batt\.angle = '16'"),
        ("batt", {"benign_angle": -1}, r"attack\.batt\.benign_angle = -1"),
        ("batt", {"angle": -360}, r"attack\.batt\.angle = -360\.0: .*leaves images as they are"),
        ("physical", {"scale": (0.8, float("inf"))}, r"attack\.physical\.scale = inf"),
        ("physical", {"scale": 0.8}, r"attack\.physical\.scale = 0\.8"),
        ("physical", {"scale": (0.9, 0.8)}, r"attack\.physical\.scale = 0\.8: .*0\.9"),
        ("label_consistent", {"steps": 0}, r"attack\.label_consistent\.steps = 0"),
        ("label_consistent", {"eps": 0}, r"attack\.label_consistent\.eps = 0"),
        ("adaptive_patch", {"alphas": (0.5,)}, r"attack\.adaptive_patch\.alphas = \(0\.5,\): .*4"),
        ("adaptive_patch", {"alphas": (0.5, 0.5, 0.5, 1.5)}, r"attack\.adaptive_patch\.alphas = 1\.5"),
        ("adaptive_patch", {"patterns": ("nowhere.png",)}, r"attack\.adaptive_patch\.patterns = 'nowhere\.png'"),
        ("adaptive_patch", {"patterns": ()}, r"attack\.adaptive_patch\.patterns = \(\)"),
        ("adaptive_patch", {"cover_rate": 1.1}, r"attack\.adaptive_patch\.cover_rate = 1\.1"),
    ],
)
def test_what_cannot_be_is_refused_with_its_field(name, given, message):
    with pytest.raises(SettingError) as caught:
        attacks.build(name, **{"image_size": 32, **given})
    assert re.match(message, str(caught.value))


def test_an_attack_that_is_gone_cannot_be_rebuilt():
    attack = attacks.build("badnets", 32)
    with pytest.raises(SettingError, match=r"attack\.name = 'nonesuch'"):
        attacks.rebuild({**attacks.describe(attack), "name": "nonesuch"}, attack.arrays)


def test_an_array_file_may_lie_in_the_home_folder_and_must_be_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "grid.npy").touch()
    with pytest.raises(SettingError, match=r"attack\.wanet\.control_grid = .*a \.npy file that exists and holds an"):
        attacks.build("wanet", 32, control_grid=str(tmp_path / "grid.npy"))
    grid = attacks.build("wanet", 32).arrays["control_grid"]
    np.save(tmp_path / "grid.npy", grid)
    np.testing.assert_array_equal(attacks.build("wanet", 32, control_grid="~/grid.npy").arrays["control_grid"], grid)
