"""Pooling and initialization against PyTorch's rules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refine_jax.networks import layers


@pytest.mark.parametrize("shape", [(2, 6, 8, 3), (2, 7, 5, 3)])
def test_halving_and_its_gradient_with_ties_are_pytorchs(shape):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x = rng.integers(0, 3, shape).astype(np.float32)  # Few values: most windows have several maxima.
    inputs = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).requires_grad_()
    expected = torch.nn.functional.max_pool2d(inputs, 2)
    weights = rng.standard_normal(expected.shape).astype(np.float32)
    (expected * torch.from_numpy(weights)).sum().backward()
    out, pullback = jax.vjp(layers.halve_by_max, jnp.asarray(x))
    np.testing.assert_array_equal(out, expected.detach().numpy().transpose(0, 2, 3, 1))
    (gradient,) = pullback(jnp.asarray(weights.transpose(0, 2, 3, 1)))
    np.testing.assert_array_equal(gradient, inputs.grad.numpy().transpose(0, 2, 3, 1))


@pytest.mark.parametrize("corner", range(4))
def test_halving_keeps_nan(corner):
    x = np.zeros(4, np.float32)
    x[corner] = np.nan
    assert np.isnan(layers.halve_by_max(jnp.asarray(x.reshape(1, 2, 2, 1)))).all()


@pytest.mark.parametrize(
    ("layer", "shape", "fan_in"),
    [
        (layers.conv(16, 64, 3, bias=True), (1, 4, 4, 16), 144),
        (layers.linear(100, 400), (1, 100), 100),
    ],
    ids=["conv", "linear"],
)
def test_default_initialization_is_uniform_within_the_inverse_root_of_fan_in(layer, shape, fan_in):
    params = layer.init(jax.random.key(0), jnp.zeros(shape))["params"]
    bound = fan_in**-0.5
    for leaf, accuracy in ((params["kernel"], 0.02), (params["bias"], 0.2)):
        assert np.abs(leaf).max() <= bound
        assert np.std(leaf) == pytest.approx(bound / np.sqrt(3), rel=accuracy)
    assert np.abs(params["kernel"]).max() > 0.99 * bound


def test_padding_and_stride():
    """A kernel of ones counts the pixels under it."""
    layer = layers.conv(1, 1, 3, stride=2, padding=1)
    out = layer.apply({"params": {"kernel": jnp.ones((3, 3, 1, 1))}}, jnp.ones((1, 4, 4, 1)))
    np.testing.assert_array_equal(out[0, :, :, 0], [[4, 6], [6, 9]])


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 2), (1, 8), (3, 3), (2, 4)])
@pytest.mark.parametrize("stride", [1, 2])
def test_small_images_are_convolved_as_large_ones_are(height, width, stride):
    layer = layers.conv(3, 5, 3, stride=stride, padding=1, bias=True)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, height, width, 3)), jnp.float32)
    variables = layer.init(jax.random.key(0), x)
    kernel, bias = variables["params"]["kernel"], variables["params"]["bias"]

    def reference(x, kernel):
        dimensions = ("NHWC", "HWIO", "NHWC")
        return (
            jax.lax.conv_general_dilated(x, kernel, (stride,) * 2, ((1, 1),) * 2, dimension_numbers=dimensions) + bias
        )

    def ours(x, kernel):
        return layer.apply({"params": {"kernel": kernel, "bias": bias}}, x)

    with jax.default_matmul_precision("float32"):
        np.testing.assert_allclose(ours(x, kernel), reference(x, kernel), atol=1e-5)
        weights = jnp.asarray(rng.normal(size=reference(x, kernel).shape), jnp.float32)
        for argument in (0, 1):
            ours_gradient, expected = (
                jax.grad(lambda *args, f=f: (weights * f(*args)).sum(), argument)(x, kernel) for f in (ours, reference)
            )
            np.testing.assert_allclose(ours_gradient, expected, atol=1e-4)
