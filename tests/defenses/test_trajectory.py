"""Steps of REFINE's training against the released program's: what each leaves for the next."""

import functools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refine_jax import networks
from refine_jax.classifier import Classifier
from refine_jax.defenses import refine
from refine_jax.interop import torch_weights
from refine_jax.keys import named_key
from refine_jax.networks.unet import UNet
from refine_jax.training import optimizer
from refine_jax.training.compilation import compile_training
from refine_jax.training.state import TrainState
from tests.goldens import refine as goldens
from tests.goldens import rules


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("float32"):
        yield


def settings(golden):
    """The section 'defense' with which the steps of the golden file are those of a training."""
    return refine.complete(
        {
            "preset": "authors_code",
            "temperature": golden["tau_f64"].item(),
            "sup_weight": golden["lambda_sup_f64"].item(),
            "learning_rate": golden["lr_f64"].item(),
            "momentum": golden["momentum_f64"].item(),
            "weight_decay": golden["weight_decay_f64"].item(),
        }
    )


def start(unet, variables, section, steps_per_epoch):
    """The optimizer, and the state of a training at its first step."""
    tx = optimizer.create_optimizer(section, optimizer.create_schedule(section, steps_per_epoch))
    state = TrainState(
        jnp.zeros((), jnp.int32), variables["params"], variables["batch_stats"], tx.init(variables["params"])
    )
    return tx, state


def run(golden, dtype):
    """Returns the metrics of every step and the PyTorch state dict after the last one."""
    unet, variables = goldens.unet()
    variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), variables)
    section = settings(golden)
    tx, state = start(unet, variables, section, len(golden["images"]))
    update = functools.partial(refine.update, unet, tx, settings=refine.Objective.of(section))
    # In float32 compiled as a training is; the compiler's options for that take minutes a step in float64.
    step = compile_training(update) if dtype == np.float32 else jax.jit(update)
    permutation, victim = jnp.asarray(golden["permutation"]), goldens.victim(golden, dtype)
    metrics = []
    for images in goldens.images(golden, dtype):
        state, of_step = step(state, victim, images, permutation)
        metrics.append(of_step)
    assert state.step == len(metrics)
    return jax.tree.map(lambda *values: np.stack(values), *metrics), torch_weights.to_torch("unet", state.variables)


def check(golden, metrics, after, dtype, tolerances):
    """Compares with the arrays of the golden file for this type."""
    suffix, prefix = ("_f64", "after_from64/") if dtype == np.float64 else ("", "after/")
    assert metrics["loss"].dtype == dtype
    for name, key in (("loss", "total"), ("classification", "bce"), ("contrastive", "supcon")):
        error = np.abs(metrics[name] - golden[key + suffix])
        assert np.all(error < tolerances[key]), (name, error)

    names = json.loads(str(golden["param_names_json"]))
    assert set(names) == {key for key in after if "running" not in key and "num_batches" not in key}
    for i, name in enumerate(names):
        value = after[name].ravel().astype(np.float64)
        first = np.pad(value[:5], (0, 5 - min(5, value.size)))
        for got, key in ((np.linalg.norm(value), "param_l2"), (first, "param_first5")):
            np.testing.assert_allclose(got, golden[key + suffix][i], rtol=0, atol=tolerances[key], err_msg=name)

    statistics = [key.removeprefix(prefix) for key in golden if key.startswith(prefix)]
    assert set(statistics) == {key for key in after if "running" in key}
    for name in statistics:
        np.testing.assert_allclose(
            after[name], golden[prefix + name], rtol=tolerances["rtol"], atol=tolerances["statistics"], err_msg=name
        )


def test_eight_steps_in_float32():
    """Noise doubles with every step, in the reference as here."""
    golden = rules.load("losses/refine_trajectory.npz")
    metrics, after = run(golden, np.float32)
    by_step = np.array([2e-5, 5e-4, *[5e-2] * 6])
    tolerances = {"total": by_step, "bce": by_step, "supcon": 10 * by_step, "param_l2": 3e-2, "param_first5": 3e-2}
    check(golden, metrics, after, np.float32, tolerances | {"statistics": 1.5e-1, "rtol": 0})


def test_eight_steps_in_float64():
    golden = rules.load("losses/refine_trajectory.npz")
    with jax.enable_x64(True):
        metrics, after = run(golden, np.float64)
    tolerances = dict.fromkeys(("total", "bce", "supcon", "param_l2", "param_first5"), 1e-8)
    # The statistics are stored in float32.
    check(golden, metrics, after, np.float64, tolerances | {"statistics": 1e-8, "rtol": 1e-6})


def test_the_training_step_is_this_update_on_augmented_images():
    """Of uint8 images chosen by index, with the key of its step."""
    unet, network = UNet(width=2, depth=1), networks.build("resnet18", 3, width=2)
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    victim = Classifier(
        "resnet18", rules.variables(network, images.shape), 3, (0.5,) * 3, (0.25,) * 3, options={"width": 2}
    )
    section = refine.complete({"epochs": 3})
    tx, state = start(unet, rules.variables(unet, images.shape), section, 2)
    state = state.replace(step=jnp.asarray(4, jnp.int32))
    data = {
        "images": images,
        "classifier": victim,
        "permutation": jnp.array([1, 2, 0]),
        "key": jax.random.key(5),
    }
    indices = np.array([4, 1, 3])
    wanted = refine.Objective.of(section)

    @jax.jit
    def both(state, data):
        batch = refine.augment(data["images"][indices] / np.float32(255), named_key(data["key"], 4))
        expected = refine.update(unet, tx, state, data["classifier"], batch, data["permutation"], wanted)
        return refine.train_step(unet, tx, wanted)(state, data, {"indices": indices}), expected

    (got, metrics), (expected, expected_metrics) = both(state, data)
    assert got.step == 5
    chex.assert_trees_all_close((got, metrics), (expected, expected_metrics), rtol=1e-5, atol=1e-6)
