"""Sums over channels against NumPy's, and the gradient of a bias."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refine_jax.networks import channels


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_sums_of_many_values_beside_a_large_mean(backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    x = np.random.default_rng(0).normal(100, 1, (8, 32, 32, 5)).astype(np.float32)
    np.testing.assert_allclose(channels.channel_sum(jnp.asarray(x)), x.sum((0, 1, 2), dtype=np.float64), rtol=1e-5)


def test_the_gradient_of_a_bias_is_the_sum_over_pixels():
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(2, 3, 4, 5, 6)).astype(np.float32)
    bias = rng.normal(size=6).astype(np.float32)
    of_x, of_bias = jax.grad(lambda x, bias: (weights * channels.add_bias(x, bias)).sum(), (0, 1))(x, bias)
    np.testing.assert_array_equal(of_x, weights)
    np.testing.assert_allclose(of_bias, weights.sum((0, 1, 2)), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(channels.add_bias(x, bias), x + bias)
