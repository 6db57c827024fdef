"""Sums over the pixels of each channel, which normalization, biases and their gradients consist of."""

import jax
import jax.numpy as jnp


def channel_sum(x: jax.Array) -> jax.Array:
    """Returns the sum of each channel.  [..., C] -> [C]

    On a CPU as a matrix product: XLA's CPU backend adds up one channel after the other, in strides through the whole
    array, and computes what it adds up anew for each of several sums; operands of a product it computes once
    (docs/performance.md).
    """
    rows = x.reshape(-1, x.shape[-1])
    if jax.default_backend() != "cpu":
        return rows.sum(axis=0)
    ones = jnp.ones((1, len(rows)), x.dtype)
    return jnp.dot(ones, rows, precision=jax.lax.Precision.HIGHEST)[0]


@jax.custom_vjp
def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """Returns `x` plus a number of each channel; its gradient is a `channel_sum`.  [..., C], [C] -> [..., C]"""
    return x + bias


def _add_bias_forward(x: jax.Array, bias: jax.Array) -> tuple[jax.Array, None]:
    return x + bias, None


def _add_bias_backward(_: None, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    return gradient, channel_sum(gradient)


add_bias.defvjp(_add_bias_forward, _add_bias_backward)
