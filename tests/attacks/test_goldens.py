"""Every attack against what the reference programs made of real images."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refine_jax import attacks, networks
from refine_jax.attacks import adaptive_patch, label_consistent, warp
from refine_jax.interop import torch_weights
from tests.goldens import rules


def to_unit(images):
    return jnp.asarray(images, jnp.float32) / 255


def to_uint8(images):
    """Half to even, as a program that writes such floats into a file does."""
    return np.rint(images * np.float32(255)).astype(np.uint8)


@pytest.mark.parametrize("case", ["main", "rgb_half"])
@pytest.mark.parametrize("name", ["badnets", "physical", "label_consistent"])
def test_patch_is_bit_for_bit_the_reference(name, case):
    golden = rules.load("attacks/badnets.npz")
    attack = attacks.build(name, 32, pattern=golden[f"{case}/pattern"], weight=golden[f"{case}/weight"])
    np.testing.assert_array_equal(attack.trigger(golden["images"]), golden[f"{case}/out"])


def test_blended_rounds_what_the_reference_leaves_in_floats():
    golden = rules.load("attacks/blended.npz")
    attack = attacks.build("blended", 32, pattern=golden["pattern"], alpha=float(golden["alphas_f64"][0]))
    np.testing.assert_array_equal(attack.trigger(golden["images"]), to_uint8(golden["out_0"]))


@pytest.mark.parametrize("case", ["k4", "k32"])
def test_wanet(case):
    golden = rules.load("attacks/wanet.npz")
    control = golden[f"{case}/ins"]
    attack = attacks.build("wanet", 32, s=float(golden[f"{case}/s_f64"]), control_grid=control)
    noise = np.moveaxis(warp.upsample_bicubic(control[0], (32, 32)), 0, -1)
    np.testing.assert_allclose(noise, golden[f"{case}/noise_grid"][0], atol=2e-5)
    np.testing.assert_allclose(attack.arrays["grid"], golden[f"{case}/grid"][0], atol=1e-6)
    sampled = warp.grid_sample(to_unit(golden["images"]), jnp.asarray(attack.arrays["grid"]))
    np.testing.assert_allclose(sampled, golden[f"{case}/out_float"], atol=2e-5)
    difference = np.abs(attack.trigger(golden["images"]).astype(int) - golden[f"{case}/out_uint8"])
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 0.005


def test_batt_is_bit_for_bit_the_reference_where_that_is_ambiguous_too():
    golden = rules.load("attacks/batt.npz")
    attack = attacks.build("batt", 32, angle=float(golden["angles_f64"][0]))
    np.testing.assert_array_equal(attack.arrays["source"], golden["source_index"][0])
    np.testing.assert_array_equal(attack.trigger(golden["images"]), golden["out"][0])


def test_physical_transformations():
    golden = rules.load("attacks/physical.npz")
    attack = attacks.build("physical", 32, pattern=golden["pattern"], weight=golden["weight"])
    np.testing.assert_array_equal(attack.trigger(golden["images"]), golden["patched"])
    columns = json.loads(str(golden["param_columns"]))
    for row, expected, ambiguous in zip(golden["params_f64"], golden["out"], golden["ambiguous"], strict=True):
        parameters = dict(zip(columns, row, strict=True))
        images = to_unit(golden["patched"])
        images = images[:, :, ::-1] if parameters["flip"] else images
        images = warp.adjust_brightness(images, jnp.full(len(images), parameters["brightness_factor"]))
        shift = (parameters["translate_x_px"], parameters["translate_y_px"])
        source = warp.affine_source((32, 32), parameters["angle_deg"], shift, parameters["scale"])
        images = np.asarray(warp.take_pixels(images, source))
        np.testing.assert_allclose(images[:, ~ambiguous], expected[:, ~ambiguous], atol=1e-6)


def test_adaptive_patch():
    golden = rules.load("attacks/adaptive_patch.npz")
    images, alphas = golden["images"], tuple(golden["alphas_f64"].tolist())
    attack = attacks.build("adaptive_patch", 32, patterns=tuple(golden["patterns"]), alphas=alphas)
    np.testing.assert_array_equal(attack.trigger(images), to_uint8(golden["out_test"]))
    planted = adaptive_patch.overlay_one_each(np.repeat(images, 4, axis=0), attack, jax.random.key(0))
    for number, expected in enumerate(golden["out_train"]):
        np.testing.assert_array_equal(planted[number::4], to_uint8(expected))


@pytest.fixture(scope="module")
def golden_victim():
    golden = rules.load("attacks/label_consistent.npz")
    state_dict = rules.weights(
        golden["seed"], rules.shapes(rules.load("models/resnet18_cifar.npz")["state_dict_json"])
    )
    state_dict["linear.weight"] = state_dict["linear.weight"] * golden["victim_head_scale"]
    state_dict["linear.bias"] = golden["victim_head_bias"]
    network = networks.build("resnet18", 10)
    variables = torch_weights.convert("resnet18", state_dict)
    # Of the kind that is a pytree, so that all tests share one compiled step.
    return golden, jax.tree_util.Partial(lambda variables, images: network.apply(variables, images), variables)


def test_label_consistent_step(golden_victim):
    golden, classifier = golden_victim
    np.testing.assert_allclose(classifier(to_unit(golden["images"])), golden["clean_logits"], atol=1e-3)
    images, labels = to_unit(golden["images"]), jnp.asarray(golden["labels"], jnp.int32)
    starts = [images, *golden["steps5/adv_steps"][:-1]]
    eps, alpha = float(golden["steps5/eps_f64"]), float(golden["steps5/alpha_f64"])
    for start, gradient, end in zip(starts, golden["steps5/grad_steps"], golden["steps5/adv_steps"], strict=True):
        reached = np.asarray(label_consistent.ascend(classifier, jnp.asarray(start), images, labels, eps, alpha))
        same = np.abs(reached - end) <= 1e-6
        assert same.mean() >= 0.998
        # Where it goes elsewhere, the gradient is next to nothing.
        assert np.abs(gradient[~same]).max(initial=0) < 1e-2 * np.abs(gradient).max()


@pytest.mark.parametrize(("case", "share"), [("steps5", 0.95), ("steps8", 0.85)])
def test_label_consistent_end_to_end(golden_victim, case, share):
    golden, classifier = golden_victim
    adversarial = label_consistent.perturb(
        classifier,
        golden["images"],
        golden["labels"],
        eps=float(golden[f"{case}/eps_f64"]),
        alpha=float(golden[f"{case}/alpha_f64"]),
        steps=int(golden[f"{case}/steps"]),
    )
    chex.assert_type(adversarial, np.uint8)
    assert (np.abs(adversarial.astype(int) - golden[f"{case}/adv_uint8"]) <= 1).mean() >= share
