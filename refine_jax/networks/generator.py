"""The image-to-image network of BTI-DBF: a U-Net with instance normalization, which sees each image by itself."""

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from refine_jax.networks import layers
from refine_jax.networks.unet import pad_to


class InstanceNorm(nn.Module):
    """Normalizes each channel of each image over its pixels, with the biased variance, then scales and shifts it.

    Attributes:
        dtype: Type of the output; None for the promoted type of inputs and parameters.
        epsilon: Added to the variance.

    Source: torch.nn.InstanceNorm2d(affine=True) of PyTorch.
    """

    dtype: jax.typing.DTypeLike | None = None
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `x` [N, H, W, C] normalized."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        dtype = self.dtype or jnp.promote_types(x.dtype, scale.dtype)
        x = layers.at_least_float32(x)
        centered = x - x.mean(axis=(1, 2), keepdims=True)
        variance = jnp.square(centered).mean(axis=(1, 2), keepdims=True)  # [N, 1, 1, C]
        return (centered * jax.lax.rsqrt(variance + self.epsilon) * scale + bias).astype(dtype)


class DoubleConv(nn.Module):
    """Two 3 x 3 convolutions with instance normalization and leaky ReLU: [N, H, W, C] -> [N, H, W, features]."""

    features: int
    dtype: jax.typing.DTypeLike | None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in (1, 2):
            convolve = layers.conv(
                x.shape[-1], self.features, 3, padding=1, bias=True, dtype=self.dtype, name=f"conv{i}"
            )
            x = nn.leaky_relu(InstanceNorm(self.dtype, name=f"norm{i}")(convolve(x)))
        return x


class Generator(nn.Module):
    """An image-to-image network: `depth` halvings, as many doublings, and skips between them.

    Max-pooling halves an image, rounding down; a transposed 3 x 3 convolution doubles it. The reference program takes
    sides that are multiples of 2 ** depth alone; others are padded with zeros at the skips here.

    Attributes:
        width: Channels of the first level; they double at every level, to 512 at most, and below the last.
        depth: Number of halvings; 2 x 2 pixels at least have to be left, for instance normalization.
        dtype: Type of the computation; None for the promoted type of images and parameters.

    Source: BTI-DBF's released program, models/unet_model.py (width 32, depth 4), after O. Ronneberger et al.,
        U-Net, MICCAI 2015.
    """

    width: int = 32
    depth: int = 4
    dtype: jax.typing.DTypeLike | None = None

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns changed images [N, H, W, 3], unclipped, of `images` [N, H, W, 3].

        Raises:
            SettingError: A side of the images is under 2 ** (depth + 1).
        """
        chex.assert_shape(images, (None, None, None, 3))
        layers.require_side(f"a generator of depth {self.depth}", images, 2 ** (self.depth + 1))
        levels = [min(self.width * 2**i, 512) for i in range(self.depth)]
        x, skips = images, []
        for i, features in enumerate(levels, start=1):
            x = DoubleConv(features, self.dtype, name=f"down{i}")(x)
            skips.append(x)
            x = layers.halve_by_max(x)
        x = DoubleConv(2 * levels[-1], self.dtype, name="bottom")(x)
        for i, skip in enumerate(reversed(skips), start=1):
            x = nn.leaky_relu(self._double(x, name=f"double{i}"))
            x = jnp.concatenate([pad_to(x, *skip.shape[1:3]), skip], axis=-1)
            x = DoubleConv(skip.shape[-1], self.dtype, name=f"up{i}")(x)
        outputs = layers.conv(levels[0], 3, 1, bias=True, dtype=self.dtype, name="outc")(x)
        return layers.at_least_float32(outputs)

    def _double(self, x: jax.Array, name: str) -> jax.Array:
        """A transposed convolution of stride 2, as torch.nn.ConvTranspose2d(C, C, 3, 2, 1, output_padding=1)."""
        channels = x.shape[-1]
        return nn.ConvTranspose(
            channels,
            (3, 3),
            strides=(2, 2),
            padding=((1, 2), (1, 2)),
            dtype=self.dtype,
            kernel_init=layers.default_kernel_init,
            bias_init=layers.default_bias_init(9 * channels),
            name=name,
        )(x)
