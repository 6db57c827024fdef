"""Every classifier against the outputs of the reference programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refine_jax import networks
from refine_jax.interop import torch_weights
from tests.goldens import rules

# Golden file to network.
FILES = {
    "resnet18_cifar": "resnet18",
    "resnet50_cifar": "resnet50",
    "torchvision_resnet18": "imagenet_resnet18",
    "torchvision_resnet50": "imagenet_resnet50",
    "torchvision_densenet121": "densenet121",
    "preact_resnet18": "preact_resnet18",
    "vgg16_cifar": "vgg16",
    "vit_cifar": "vit",
    "vit_imagenet50": "vit",
}


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("float32"):
        yield


def widened(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def network(name, state_dict):
    return networks.build(name, **torch_weights.infer_options(name, state_dict))


@pytest.mark.parametrize("file", FILES)
def test_logits(file):
    """In float32 by way of features and head, in float64 in one go."""
    name = FILES[file]
    golden = rules.load(f"models/{file}.npz")
    state_dict, images = rules.golden_weights(golden), rules.golden_inputs(golden)
    module = network(name, state_dict)
    # The transformer's attention is almost one-hot under these weights, which amplifies float32's noise.
    tolerance = 5e-3 if name == "vit" else 2e-5 * np.abs(golden["logits"]).max()

    variables = torch_weights.convert(name, state_dict)
    features = jax.jit(lambda v, x: module.apply(v, x, method="features"))(variables, images)
    logits = module.apply(variables, features, method="head")
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, golden["logits"], rtol=0, atol=tolerance)

    with jax.enable_x64(True):
        logits = jax.jit(module.apply)(widened(variables), widened(images))
        assert logits.dtype == jnp.float64
        np.testing.assert_allclose(
            logits, golden["logits_f64"], rtol=0, atol=1e-10 * np.abs(golden["logits_f64"]).max()
        )


@pytest.mark.parametrize("file", ["vit_cifar", "vit_imagenet50"])
def test_vit_with_soft_attention(file):
    golden = rules.load(f"models/{file}.npz")
    state_dict = rules.golden_weights(golden)
    for key in state_dict:
        if key.endswith("temperature"):
            state_dict[key] = state_dict[key] + golden["temperature_offset"]
    logits = jax.jit(network("vit", state_dict).apply)(
        torch_weights.convert("vit", state_dict), rules.golden_inputs(golden)
    )
    np.testing.assert_allclose(logits, golden["logits_soft"], rtol=0, atol=5e-5)


def test_gradient_to_the_image():
    golden = rules.load("models/resnet18_cifar.npz")
    state_dict, images = rules.golden_weights(golden), rules.golden_inputs(golden)
    variables = torch_weights.convert("resnet18", state_dict)
    module = network("resnet18", state_dict)

    # Weights are an argument: as constants they would be folded, which takes longer than all the rest.
    @jax.jit
    def gradient_of(images, variables):
        return jax.grad(lambda x: module.apply(variables, x)[:, 0].sum())(images)

    def relative_error(variables, images, expected):
        gradient = np.asarray(gradient_of(images, variables)).transpose(0, 3, 1, 2)
        return np.linalg.norm(gradient - expected) / np.linalg.norm(expected)

    assert relative_error(variables, images, golden["grad_x"]) < 1e-4
    with jax.enable_x64(True):
        # The golden's double-precision gradient is stored in float32.
        assert relative_error(widened(variables), widened(images), golden["grad_x_from64"]) < 1e-6
