"""Batch normalization against PyTorch's, and over several devices against one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refine_jax.errors import SettingError
from refine_jax.networks.norm import BatchNorm, normalize_by_batch


def batches(steps, shape=(4, 3, 5, 6)):
    rng = np.random.default_rng(0)
    return [(3 * rng.standard_normal(shape) + rng.standard_normal(shape[-1])).astype(np.float32) for _ in range(steps)]


def trained(module, variables, x):
    out, updates = module.apply(variables, x, train=True, mutable=["batch_stats"])
    return out, {**variables, **updates}


def test_several_steps_and_inference_are_pytorchs():
    torch = pytest.importorskip("torch")
    *steps, last = batches(5)
    scale, bias = np.linspace(0.5, 2, 6, dtype=np.float32), np.linspace(-1, 1, 6, dtype=np.float32)
    theirs = torch.nn.BatchNorm2d(6)
    with torch.no_grad():
        theirs.weight.copy_(torch.from_numpy(scale))
        theirs.bias.copy_(torch.from_numpy(bias))
    ours = BatchNorm()
    variables = ours.init(jax.random.key(0), last)
    variables["params"] = {"scale": scale, "bias": bias}

    def run(x):
        return theirs(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).detach().numpy().transpose(0, 2, 3, 1)

    for x in steps:
        out, variables = trained(ours, variables, x)
        np.testing.assert_allclose(out, run(x), rtol=0, atol=2e-6)
        np.testing.assert_allclose(variables["batch_stats"]["mean"], theirs.running_mean, rtol=0, atol=1e-6)
        np.testing.assert_allclose(variables["batch_stats"]["var"], theirs.running_var, rtol=1e-6)
    theirs.eval()
    np.testing.assert_allclose(ours.apply(variables, last), run(last), rtol=0, atol=2e-6)


def test_gradient_is_pytorchs():
    torch = pytest.importorskip("torch")
    x, weights = batches(2)
    theirs = torch.nn.BatchNorm2d(6)
    inputs = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).requires_grad_()
    (theirs(inputs) * torch.from_numpy(weights.transpose(0, 3, 1, 2).copy())).sum().backward()
    ours = BatchNorm()
    variables = ours.init(jax.random.key(0), x)
    gradient = jax.grad(lambda x: jnp.sum(trained(ours, variables, x)[0] * weights))(x)
    np.testing.assert_allclose(gradient, inputs.grad.numpy().transpose(0, 2, 3, 1), rtol=0, atol=2e-6)


def test_variance_beside_a_large_mean():
    x = np.random.default_rng(0).standard_normal((16, 16, 16, 2)).astype(np.float32) + np.float32(1000)
    ours = BatchNorm(momentum=1.0)
    _, variables = jax.jit(lambda v, x: trained(ours, v, x))(ours.init(jax.random.key(0), x), x)
    expected = np.var(x.astype(np.float64), axis=(0, 1, 2), ddof=1)
    np.testing.assert_allclose(variables["batch_stats"]["var"], expected, rtol=1e-5)


def mapped_by_vmap(step, x):
    return jax.vmap(step, axis_name="devices")(x)


def mapped_by_pmap(step, x):
    return jax.pmap(step, axis_name="devices")(x)


@pytest.mark.parametrize(("mapped", "parts"), [(mapped_by_vmap, 4), (mapped_by_pmap, jax.local_device_count())])
def test_statistics_are_the_global_batchs(mapped, parts):
    x = batches(1, (4 * parts, 3, 5, 6))[0]
    variables = BatchNorm().init(jax.random.key(0), x)
    whole, expected = trained(BatchNorm(), variables, x)
    shared = BatchNorm(axis_name="devices")
    out, got = mapped(lambda x: trained(shared, variables, x), x.reshape(parts, 4, 3, 5, 6))
    np.testing.assert_allclose(out.reshape(x.shape), whole, rtol=0, atol=2e-6)
    for name in ("mean", "var"):
        for part in got["batch_stats"][name]:
            np.testing.assert_allclose(part, expected["batch_stats"][name], rtol=0, atol=2e-6)


def test_a_mapped_norm_is_initialized_and_applied_outside_the_axis():
    x = batches(1)[0]
    shared = BatchNorm(axis_name="devices")
    variables = shared.init(jax.random.key(0), x, train=True)
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], np.zeros(6))
    np.testing.assert_array_equal(shared.apply(variables, x), BatchNorm().apply(variables, x))


def test_float64_and_bfloat16():
    x = batches(1)[0]
    variables = BatchNorm().init(jax.random.key(0), x)
    out, after = trained(BatchNorm(dtype=jnp.bfloat16), variables, x.astype(jnp.bfloat16))
    assert out.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(after)} == {jnp.dtype(jnp.float32)}
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
        out, after = trained(BatchNorm(), wide, x.astype(np.float64))
        assert {leaf.dtype for leaf in jax.tree.leaves((out, after))} == {jnp.dtype(jnp.float64)}
        expected = 0.1 * x.astype(np.float64).mean(axis=(0, 1, 2))
        np.testing.assert_allclose(after["batch_stats"]["mean"], expected, rtol=1e-13)


def test_one_value_per_channel_cannot_be_trained_on():
    x = np.ones((1, 1, 1, 3), np.float32)
    variables = BatchNorm().init(jax.random.key(0), x)
    with pytest.raises(SettingError, match="batch size"):
        trained(BatchNorm(), variables, x)


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_all_gradients_are_those_of_differentiation(name, monkeypatch):
    """Of x, scale and bias, with sums as matrix products and as reductions."""
    monkeypatch.setattr(jax, "default_backend", lambda: name)
    x, weights = batches(2)
    scale, bias = jnp.linspace(0.5, 2, 6), jnp.linspace(-1, 1, 6)

    def ours(x, scale, bias):
        return (weights * normalize_by_batch(x, scale, bias, 1e-5, None)[0]).sum()

    def plain(x, scale, bias):
        mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
        return (weights * ((x - mean) / jnp.sqrt(var + 1e-5) * scale + bias)).sum()

    with jax.enable_x64(True):
        arguments = [np.asarray(each, np.float64) for each in (x, scale, bias)]
        for got, expected in zip(
            jax.grad(ours, (0, 1, 2))(*arguments), jax.grad(plain, (0, 1, 2))(*arguments), strict=True
        ):
            np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("mapped", "parts"), [(mapped_by_vmap, 4), (mapped_by_pmap, jax.local_device_count())])
def test_gradients_are_the_global_batchs(mapped, parts):
    x, weights = batches(2, (4 * parts, 3, 5, 6))
    scale, bias = jnp.linspace(0.5, 2, 6), jnp.linspace(-1, 1, 6)

    def gradients(x, weights, axis):
        def total(x, scale, bias):
            return (weights * normalize_by_batch(x, scale, bias, 1e-5, axis)[0]).sum()

        of_x, *of_parameters = jax.grad(total, (0, 1, 2))(x, scale, bias)
        return of_x, of_parameters if axis is None else jax.lax.psum(of_parameters, axis)

    expected, of_parameters = gradients(jnp.asarray(x), weights, None)
    split = x.reshape(parts, 4, 3, 5, 6), weights.reshape(parts, 4, 3, 5, 6)
    got, got_parameters = mapped(lambda both: gradients(*both, "devices"), split)
    np.testing.assert_allclose(got.reshape(x.shape), expected, rtol=0, atol=5e-6)
    for name, each in zip(("scale", "bias"), got_parameters, strict=True):
        np.testing.assert_allclose(each[0], of_parameters[name == "bias"], rtol=1e-5, atol=1e-4)
