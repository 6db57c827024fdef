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
