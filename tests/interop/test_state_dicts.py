"""Which entries are taken for the network's, where a file holds more, and what is said of the rest."""

import numpy as np
import pytest

from refine_jax.errors import DataError, SettingError
from refine_jax.interop import torch_weights
from refine_jax.interop.state_dicts import WeightsError
from tests.interop.test_torch_weights import assert_same, small_resnet18, with_torchvisions_names

MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([[[0.229]], [[0.224]], [[0.225]]])


def below(prefix, state_dict=None):
    return {prefix + key: value for key, value in (state_dict or small_resnet18()).items()}


def read(state_dict, entry=None, expected=None):
    """Reads a resnet18 and holds its weights against the expected ones."""
    weights = torch_weights.read("resnet18", state_dict, entry)
    assert_same(torch_weights.to_torch("resnet18", weights.variables), expected or small_resnet18())
    assert weights.options == {"num_classes": 3, "width": 2}
    return weights


def other():
    return {key: value + 1 if value.dtype == np.float32 else value for key, value in small_resnet18().items()}


@pytest.mark.parametrize(
    ("more", "prefix", "named"),
    [
        ({"criterion.weight": np.ones(3, np.float32)}, "model.", "criterion.weight"),
        ({"loss.linear.weight": np.ones((3, 2), np.float32)}, "model.", "loss.linear.weight"),
        ({f"ema.{i}": np.ones(2, np.float32) for i in range(5)}, "net.model.", "ema.0, ema.1, ema.2 and 2 more"),
    ],
)
def test_what_stands_beside_the_network_is_left_out_and_named(more, prefix, named):
    (remark,) = read(below(prefix) | more).remarks
    assert remark.endswith(f"left out: {named}")


def test_the_count_of_averaged_models_is_no_weight():
    assert read({"n_averaged": np.array(7), **below("module.")}).remarks == ()


@pytest.mark.parametrize(
    ("names", "prefix"),
    [
        (("0.mean", "0.std"), "1."),
        (("normalize.mean", "normalize.std"), ""),
        (("module.normalizer.new_mean", "module.normalizer.new_std"), "module.model."),
    ],
)
def test_a_layer_that_normalizes_is_the_preprocessing(names, prefix):
    weights = read(dict(zip(names, (MEAN, STD), strict=True)) | below(prefix))
    assert weights.preprocessing == {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    (remark,) = weights.remarks
    assert "a mean of (0.485, 0.456, 0.406)" in remark


def test_of_a_copy_below_another_module_the_nearer_is_taken_and_the_rest_is_named():
    copies = {"normalizer.new_mean": MEAN, "normalizer.new_std": STD, **below("model.")}
    copies |= {f"attacker.{key}": value for key, value in {**copies, **below("model.", other())}.items()}
    weights = read(below("module.", copies))
    assert weights.preprocessing["std"] == (0.229, 0.224, 0.225)
    assert any("left out: attacker.model." in remark for remark in weights.remarks)


@pytest.mark.parametrize(
    ("pairs", "told"),
    [
        ({"0.mean": 255 * MEAN, "0.std": 255 * STD}, "not in units of [0, 1]"),
        ({"0.mean": MEAN, "0.std": STD, "2.mean": STD, "2.std": STD}, "in 2 ways, and none is taken"),
    ],
)
def test_normalization_that_cannot_be_used_is_told(pairs, told):
    weights = read(pairs | below("1."))
    assert weights.preprocessing == {}
    assert told in weights.remarks[0]


def test_what_stands_first_in_a_sequential_may_normalize():
    (remark,) = read(below("1.module.")).remarks
    assert "victim.mean" in remark
    assert read(below("0.")).remarks == ()


@pytest.mark.parametrize(
    ("tree", "entry"),
    [
        ({"state_dict": small_resnet18(), "state_dict_ema": other()}, "state_dict_ema"),
        ({"model": small_resnet18(), "epoch": 3, "model_ema": below("module.", other())}, "model_ema"),
        ({"ema": other(), "state_dict": {"model": small_resnet18()}}, "ema"),
    ],
)
def test_an_average_of_the_weights_is_told_and_can_be_taken(tree, entry):
    (remark,) = read(tree).remarks
    assert f"victim.entry={entry} takes it" in remark
    assert read(tree, entry, other()).remarks == ()


def test_of_two_networks_one_is_to_be_named():
    tree = {"state_dict": below("student.") | below("teacher.", other())}
    with pytest.raises(SettingError, match="entry = None: allowed: one of student, teacher: each is a resnet18"):
        torch_weights.read("resnet18", tree)
    read(tree, "student")
    read(tree, "teacher", other())
    with pytest.raises(SettingError, match="entry = 'pupil': allowed: of this file one of student, teacher"):
        torch_weights.read("resnet18", tree, "pupil")
    with pytest.raises(SettingError, match="entry = 'x': allowed: none of this file"):
        torch_weights.read("resnet18", {"a": MEAN}, "x")


def test_a_state_dict_under_a_key_of_its_own_is_pointed_at():
    tree = {"victim": small_resnet18(), "epoch": 3}
    with pytest.raises(DataError, match=r"'victim' of the state dict is a dict, no array: .* victim\.entry=victim"):
        torch_weights.read("resnet18", tree)
    read(tree, "victim")


def test_a_last_layer_with_dropout_in_front():
    renamed = {key.replace("fc.", "fc.1."): value for key, value in with_torchvisions_names(small_resnet18()).items()}
    assert torch_weights.fitting(renamed) == ("resnet18",)
    remarks = read(below("net.", renamed)).remarks
    assert "the last layer is called 'net.fc.1'" in remarks[0]
    with pytest.raises(WeightsError, match=r"missing: .*left over: .*fc\.1"):
        read(renamed | {"fc.3.weight": np.ones((3, 3), np.float32), "fc.3.bias": np.ones(3, np.float32)})


def test_strings_are_no_arrays_however_often_one_stands_there():
    """NumPy makes of such a list an array with room for the longest string in each of its elements."""
    with pytest.raises(WeightsError, match="the entry 'x' of the state dict is a list"):
        torch_weights.read("resnet18", small_resnet18() | {"x": ["a" * 1000] * 1000})


def test_entries_without_numbers_show_no_size():
    tree = small_resnet18() | {"conv1.weight": np.zeros((2**40, 0, 3, 3), np.float32)}
    with pytest.raises(WeightsError, match=r"misshapen: conv1\.weight"):
        torch_weights.read("resnet18", tree)


def test_numbers_that_float32_does_not_hold_are_not_finite():
    tree = {key: value.astype(np.float64) for key, value in small_resnet18().items()}
    tree["linear.bias"][0] = 1e300
    with pytest.raises(WeightsError, match=r"not finite numbers: linear\.bias"):
        torch_weights.read("resnet18", tree)
