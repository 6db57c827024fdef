"""The image-to-image network of BTI-DBF: a U-Net with instance normalization, which sees each image by itself."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from refine_jax.networks import layers
from refine_jax.networks.channels import add_bias
from refine_jax.networks.unet import pad_to

# Of a line: a pixel becomes two, each of which is that pixel and the next one times these rows of the kernel; 3: none.
_ROWS = np.array([[1, 3], [0, 2]])  # [which of the two, that pixel or the next]


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


class Double(nn.Module):
    """A transposed 3 x 3 convolution of stride 2: [N, H, W, C] -> [N, 2H, 2W, C].

    Computed as a convolution by 2 x 2 pixels that gives the four pixels which a pixel becomes. As XLA has it, of
    images with zeros in between, it took most of a training step on a CPU (docs/performance.md).

    Source: torch.nn.ConvTranspose2d(C, C, 3, stride=2, padding=1, output_padding=1) of PyTorch; the kernel is
        flax.linen.ConvTranspose's, [3, 3, in, out].
    """

    dtype: jax.typing.DTypeLike | None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `x` doubled."""
        n, height, width, channels = x.shape
        kernel = self.param("kernel", layers.default_kernel_init, (3, 3, channels, channels), jnp.float32)
        bias = self.param("bias", layers.default_bias_init(9 * channels), (channels,), jnp.float32)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        kernel = jnp.pad(kernel, ((0, 1), (0, 1), (0, 0), (0, 0)))[_ROWS[:, :, None, None], _ROWS]
        kernel = kernel.transpose(1, 3, 4, 0, 2, 5).reshape(2, 2, channels, 4 * channels)
        x = layers.convolve(x, kernel, (1, 1), ((0, 1), (0, 1)))
        x = x.reshape(n, height, width, 2, 2, channels).swapaxes(2, 3)
        return add_bias(x.reshape(n, 2 * height, 2 * width, channels), bias)


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
            x = nn.leaky_relu(Double(self.dtype, name=f"double{i}")(x))
            x = jnp.concatenate([pad_to(x, *skip.shape[1:3]), skip], axis=-1)
            x = DoubleConv(skip.shape[-1], self.dtype, name=f"up{i}")(x)
        outputs = layers.conv(levels[0], 3, 1, bias=True, dtype=self.dtype, name="outc")(x)
        return layers.at_least_float32(outputs)
