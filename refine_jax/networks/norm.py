"""Batch normalization by PyTorch's rule, over one device or over all of them."""

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from refine_jax.errors import SettingError


class BatchNorm(nn.Module):
    """Normalizes each channel over batch and image, and keeps running statistics.

    Training normalizes with the biased variance of the batch and moves the running estimates by `momentum`
    towards the batch's mean and its *unbiased* variance; inference uses the running estimates. The variance is
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
            mean, var, count = self._batch_statistics(x)
            running_mean.value = self._moved(running_mean.value, mean)
            running_var.value = self._moved(running_var.value, var * (count / (count - 1)))
        else:
            mean, var = running_mean.value, running_var.value
        gain = scale * jax.lax.rsqrt(var + self.epsilon)  # [C]
        return (x * gain + (bias - mean * gain)).astype(dtype)

    def _batch_statistics(self, x: jax.Array) -> tuple[jax.Array, jax.Array, int]:
        """Returns mean [C], biased variance [C] and the number of values per channel of the global batch."""
        count = x.size // x.shape[-1]
        if self.axis_name is not None:
            count *= jax.lax.psum(1, self.axis_name)
        if count < 2:
            raise SettingError(
                "batch size",
                1,
                f"2 or more, since a single image leaves one value per channel of {x.shape} to train on",
            )
        mean = self._mean(x)
        return mean, self._mean(jnp.square(x - mean)), count

    def _mean(self, x: jax.Array) -> jax.Array:
        local = jnp.mean(x, axis=(0, 1, 2))
        return local if self.axis_name is None else jax.lax.pmean(local, self.axis_name)

    def _moved(self, running: jax.Array, new: jax.Array) -> jax.Array:
        return ((1 - self.momentum) * running + self.momentum * new).astype(running.dtype)
