"""Batch normalization by PyTorch's rule, over one device or over all of them."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from refine_jax.errors import SettingError
from refine_jax.networks.channels import channel_sum


class BatchNorm(nn.Module):
    """Normalizes each channel over batch and image, and keeps running statistics.

    Training normalizes with the biased variance of the batch and moves the running estimates by `momentum`
    toward the batch's mean and its *unbiased* variance; inference uses the running estimates. The variance is
    that of the centered values, since the mean of squares minus the squared mean loses digits where the mean is
    large. Statistics are held in at least float32, whatever the inputs are.

    Attributes:
        dtype: Type of the output; None for the promoted type of inputs and parameters.
        axis_name: Mapped axis over which the statistics are shared, so that they are those of the global batch.
        momentum: Weight of the batch in the running estimates.
        epsilon: Added to the variance.

    Source: torch.nn.BatchNorm2d of PyTorch, with its defaults.
    """

    dtype: jax.typing.DTypeLike | None = None
    axis_name: str | None = None
    momentum: float = 0.1
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Returns `x` [N, H, W, C] normalized.

        Raises:
            SettingError: Training with one value per channel, which has no variance.
        """
        chex.assert_rank(x, 4)
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)

        dtype = self.dtype or jnp.promote_types(x.dtype, scale.dtype)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if train and not self.is_initializing():
            count = self._count(x)
            out, mean, var = normalize_by_batch(x, scale, bias, self.epsilon, self.axis_name)
            running_mean.value = self._moved(running_mean.value, mean)
            running_var.value = self._moved(running_var.value, var * (count / (count - 1)))
            return out.astype(dtype)
        gain = scale * jax.lax.rsqrt(running_var.value + self.epsilon)  # [C]
        return (x * gain + (bias - running_mean.value * gain)).astype(dtype)

    def _count(self, x: jax.Array) -> int:
        """Returns the number of values per channel of the global batch."""
        count = _values_per_channel(x, self.axis_name)
        if count < 2:
            raise SettingError(
                "batch size",
                1,
                f"2 or more, since a single image leaves one value per channel of {x.shape} to train on",
            )
        return count

    def _moved(self, running: jax.Array, new: jax.Array) -> jax.Array:
        return ((1 - self.momentum) * running + self.momentum * new).astype(running.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def normalize_by_batch(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, axis_name: str | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalizes each channel by the global batch's own statistics.

    Its gradient is written by hand so that it consists of two `channel_sum`s and one elementwise operation.

    Args:
        x: [N, H, W, C]
        scale: [C]
        bias: [C]
        epsilon: Added to the variance.
        axis_name: Mapped axis over which the batch is spread, None for none.

    Returns:
        The outcome [N, H, W, C], and mean and biased variance [C], which have no gradient.

    Source: Ioffe and Szegedy, "Batch Normalization", ICML 2015, sections 3 and 3.1.
    """
    return _normalize_forward(x, scale, bias, epsilon, axis_name)[0]


def _normalize_forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, axis_name: str | None
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple[jax.Array, ...]]:
    count = _values_per_channel(x, axis_name)
    mean = _global_sum(x, axis_name) / count
    var = _global_sum(jnp.square(x - mean), axis_name) / count
    deviation = jax.lax.rsqrt(var + epsilon)  # its inverse  [C]
    gain = scale * deviation
    return (x * gain + (bias - mean * gain), mean, var), (x, scale, bias, mean, deviation)


def _normalize_backward(
    epsilon: float, axis_name: str | None, kept: tuple[jax.Array, ...], gradients: tuple[jax.Array, Any, Any]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, scale, bias, mean, deviation = kept
    gradient, *_ = gradients
    normalized = (x - mean) * deviation
    sums = channel_sum(gradient), channel_sum(gradient * normalized)  # of bias and scale  [C]
    shared = sums if axis_name is None else jax.lax.psum(sums, axis_name)
    of_mean, of_deviation = (total / _values_per_channel(x, axis_name) for total in shared)
    of_x = scale * deviation * (gradient - of_mean - normalized * of_deviation)
    return of_x, sums[1].astype(scale.dtype), sums[0].astype(bias.dtype)


normalize_by_batch.defvjp(_normalize_forward, _normalize_backward)


def _values_per_channel(x: jax.Array, axis_name: str | None) -> int:
    return x.size // x.shape[-1] * (1 if axis_name is None else jax.lax.psum(1, axis_name))


def _global_sum(x: jax.Array, axis_name: str | None) -> jax.Array:
    local = channel_sum(x)
    return local if axis_name is None else jax.lax.psum(local, axis_name)
