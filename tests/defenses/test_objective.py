"""The objective of REFINE against the released program's: values, and the gradient of every parameter."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from refine_jax import networks
from refine_jax.classifier import Classifier
from refine_jax.defenses import refine
from refine_jax.defenses.mapping import remap
from refine_jax.interop import torch_weights
from refine_jax.networks.unet import UNet
from tests.goldens import refine as goldens
from tests.goldens import rules

LOSSES = {"bce": "binary_cross_entropy", "ce": "cross_entropy", "ce_base_eq_tau": "cross_entropy"}
# Gradients of convolution biases in front of a batch normalization vanish, but for noise.
VANISHING = 1e-5


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("float32"):
        yield


@functools.cache
def step():
    return rules.load(goldens.STEP)


def objective(params, batch_stats, victim, images, temperature, base_temperature, *, loss):
    """The objective as a function of what a golden file says; temperatures need no compilation of their own."""
    unet, _ = goldens.unet()
    wanted = refine.Objective(loss, temperature, base_temperature, "normalized", step()["lambda_sup_f64"].item())
    variables = {"params": params, "batch_stats": batch_stats}
    return refine.objective(unet, variables, victim, images, jnp.asarray(step()["permutation"]), wanted)


@functools.cache
def compiled(loss, *, gradient):
    function = functools.partial(objective, loss=loss)
    return jax.jit(jax.value_and_grad(function, has_aux=True) if gradient else function)


def run(variant, dtype, *, gradient):
    variables = jax.tree.map(lambda leaf: np.asarray(leaf, dtype), goldens.unet()[1])
    temperatures = (step()[f"{variant}/{name}"].astype(dtype) for name in ("tau_f64", "base_temperature_f64"))
    images, victim = goldens.images(step(), dtype), goldens.victim(step(), dtype)
    return compiled(LOSSES[variant], gradient=gradient)(
        variables["params"], variables["batch_stats"], victim, images, *temperatures
    )


def assert_values(variant, total, aux, dtype):
    wide = dtype == np.float64
    suffix, tolerance = ("_f64", 1e-8) if wide else ("", 2e-5)
    for name, value in (("total", total), ("main", aux["classification"]), ("supcon", aux["contrastive"])):
        assert value.dtype == dtype
        np.testing.assert_allclose(value, step()[f"{variant}/{name}{suffix}"], rtol=0, atol=tolerance, err_msg=name)
    np.testing.assert_array_equal(aux["pseudo_labels"], step()["pseudo_labels"])
    # These are stored in float32 alone.
    transformed = np.asarray(aux["transformed"]).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(transformed, step()["x_adv"], rtol=0, atol=3e-4)
    np.testing.assert_allclose(aux["logits"], step()["victim_logits_on_x_adv"], rtol=0, atol=1e-4)
    q = remap(jax.nn.softmax(aux["logits"]), jnp.asarray(step()["permutation"]))
    np.testing.assert_allclose(q, step()["q"], rtol=0, atol=5e-5)


def assert_gradients(prefix, gradients, tolerance, vanishing):
    got = torch_weights.to_torch("unet", {"params": gradients, "batch_stats": goldens.unet()[1]["batch_stats"]})
    names = [key.removeprefix(prefix) for key in step() if key.startswith(prefix)]
    assert len(names) == 74
    assert set(names) == {key for key in got if "running" not in key and "num_batches" not in key}
    errors, vanished = {}, 0
    for name in names:
        expected = step()[prefix + name].astype(np.float64)
        if np.linalg.norm(expected) < VANISHING:
            np.testing.assert_allclose(got[name], 0, rtol=0, atol=vanishing, err_msg=name)
            vanished += 1
        else:
            errors[name] = np.linalg.norm(got[name] - expected) / np.linalg.norm(expected)
    assert vanished == 18
    assert max(errors.values()) < tolerance, sorted(errors.items(), key=lambda item: -item[1])[:5]


def test_the_released_objective_in_float32():
    (total, aux), gradients = run("bce", np.float32, gradient=True)
    assert_values("bce", total, aux, np.float32)
    assert_gradients("bce/grad/", gradients, 4e-2, 1e-5)
    assert_gradients("bce/grad_from64/", gradients, 4e-2, 1e-5)


@pytest.mark.parametrize("variant", ["ce", "ce_base_eq_tau"])
def test_the_values_of_cross_entropy_in_float32(variant):
    total, aux = run(variant, np.float32, gradient=False)
    assert_values(variant, total, aux, np.float32)


@pytest.mark.parametrize("variant", LOSSES)
def test_values_and_gradients_in_float64(variant):
    with jax.enable_x64(True):
        (total, aux), gradients = run(variant, np.float64, gradient=True)
        assert_values(variant, total, aux, np.float64)
        assert {leaf.dtype for leaf in jax.tree.leaves((gradients, aux["batch_stats"]))} == {np.dtype(np.float64)}
        assert_gradients(f"{variant}/grad_from64/", gradients, 1e-5, 1e-12)


def test_presets_are_the_goldens_variants():
    paper, authors = refine.Objective.of(None), refine.Objective.of({"preset": "authors_code"})
    assert (authors.loss, authors.unet_input) == (LOSSES["bce"], "normalized")
    assert (authors.temperature, authors.base_temperature) == (
        step()["bce/tau_f64"],
        step()["bce/base_temperature_f64"],
    )
    # The golden of the paper's values: no factor in front is what equal temperatures come to.
    assert (paper.loss, paper.temperature) == (LOSSES["ce_base_eq_tau"], step()["ce_base_eq_tau/tau_f64"])
    assert paper.base_temperature is None
    assert paper.sup_weight == authors.sup_weight == step()["lambda_sup_f64"]


def small(num_classes, height, width, batch, name="resnet18"):
    """A U-Net and a classifier of two channels, and images of whatever size."""
    unet, network = UNet(width=2, depth=2), networks.build(name, num_classes, width=2)
    shape = (batch, height, width, 3)
    images = np.random.default_rng(0).random(shape, dtype=np.float32)
    victim = Classifier(
        name, rules.variables(network, shape), num_classes, (0.4, 0.5, 0.6), (0.2, 0.3, 0.2), options={"width": 2}
    )
    permutation = np.roll(np.arange(num_classes), 1)
    return unet, rules.variables(unet, shape), victim, images, permutation


@pytest.mark.parametrize("unet_input", refine.UNET_INPUTS)
def test_other_sizes_and_what_the_parts_are_made_of(unet_input):
    """Images that are not square, a batch of 3, 1000 classes; each part by its definition."""
    unet, variables, victim, images, permutation = small(1000, 12, 9, 3)
    settings = {"unet_input": unet_input, "sup_weight": 0.25}

    @jax.jit
    def both(variables, victim, images):
        transformed, _ = refine.transform(unet, variables, victim, images, settings, train=True)
        out = unet.apply(
            variables,
            victim.preprocess(images) if unet_input == "normalized" else images,
            train=True,
            mutable=["batch_stats"],
        )
        logits = victim.logits(transformed) if unet_input == "normalized" else victim(transformed)
        return refine.objective(unet, variables, victim, images, permutation, settings), out, victim(images), logits

    (total, aux), (out, changed), plain_logits, logits = both(variables, victim, images)
    np.testing.assert_allclose(total, aux["classification"] + 0.25 * aux["contrastive"], rtol=1e-6)
    np.testing.assert_array_equal(aux["pseudo_labels"], plain_logits.argmax(axis=1))
    np.testing.assert_allclose(aux["transformed"], jnp.clip(out, 0, 1), atol=1e-5)
    np.testing.assert_allclose(aux["logits"], logits, rtol=1e-4, atol=1e-4)
    q = np.asarray(remap(jax.nn.softmax(logits), permutation))
    picked = q[np.arange(3), aux["pseudo_labels"]]
    np.testing.assert_allclose(aux["classification"], -np.log(picked).mean(), rtol=1e-4)
    chex.assert_trees_all_close(aux["batch_stats"], changed["batch_stats"], rtol=1e-5)


@pytest.mark.parametrize(
    ("num_classes", "height", "width", "batch"), [(2, 4, 5, 2), (1000, 32, 20, 3), (7, 33, 31, 1)]
)
def test_shapes_whatever_the_sizes(num_classes, height, width, batch):
    unet, variables, victim, images, permutation = small(num_classes, height, width, batch)
    total, aux = jax.eval_shape(
        lambda variables: refine.objective(unet, variables, victim, images, permutation, None), variables
    )
    assert total.shape == ()
    assert aux["logits"].shape == (batch, num_classes)
    assert aux["transformed"].shape == images.shape
    chex.assert_trees_all_equal_shapes_and_dtypes(aux["batch_stats"], variables["batch_stats"])


def test_views_are_not_copied():
    """Two views of N images are N x N similarities here, where they would be 2 N x 2 N."""
    unet, variables, victim, images, permutation = small(4, 8, 8, 5)
    shapes = set()

    def visit(jaxpr):
        for equation in jaxpr.eqns:
            shapes.update(variable.aval.shape for variable in equation.outvars)
            for inner in jaxprs_in_params(equation.params):
                visit(inner)

    visit(
        jax.make_jaxpr(lambda v, c, x: refine.objective(unet, v, c, x, permutation, None)[0])(
            variables, victim, images
        ).jaxpr
    )
    assert (5, 5) in shapes
    assert (10, 10) not in shapes


def test_one_image_can_be_defended():
    unet, variables, victim, images, permutation = small(2, 7, 10, 1)
    wanted, image_size = refine.Objective.of(None), images.shape[1:3]
    defended = refine.Defended(victim, variables, jnp.asarray(permutation), unet, wanted, image_size)
    transformed, probabilities = jax.jit(lambda d, x: (d.transform(x), d(x)))(defended, images)
    assert transformed.shape == images.shape
    assert transformed.min() >= 0
    assert transformed.max() <= 1
    p = jax.nn.softmax(victim(transformed))
    np.testing.assert_allclose(probabilities, p[:, ::-1], atol=1e-6)
    np.testing.assert_allclose(probabilities.sum(), 1, rtol=1e-6)
