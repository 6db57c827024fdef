"""Convolution, linear layer and pooling with PyTorch's parameters: padding, initialization, ties."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from refine_jax.errors import SettingError
from refine_jax.networks.channels import add_bias

# PyTorch's default for weights, uniform within 1 / sqrt(fan_in), is Kaiming's uniform rule with a = sqrt(5).
default_kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def default_bias_init(fan_in: int) -> nn.initializers.Initializer:
    """Returns PyTorch's default initializer of a bias: uniform within 1 / sqrt(fan_in)."""
    bound = fan_in**-0.5

    def init(key: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Conv(nn.Module):
    """A square convolution; what `conv` returns.

    Attributes:
        features: Channels that it gives.
        size: Side of the kernel, in pixels.
        stride: Step, in pixels.
        padding: Zeros on each side, in pixels.
        kernel_init: Initializer of the kernel.
        bias_init: Initializer of the bias; None: it has none.
        dtype: Type of the computation; None for the promoted type of inputs and parameters.
    """

    features: int
    size: int
    stride: int
    padding: int
    kernel_init: nn.initializers.Initializer
    bias_init: nn.initializers.Initializer | None
    dtype: jax.typing.DTypeLike | None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `x` convolved.  [N, H, W, C] -> [N, ..., ..., features]"""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        bias = None if self.bias_init is None else self.param("bias", self.bias_init, shape[-1:], jnp.float32)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        x = convolve(x, kernel, (self.stride,) * 2, ((self.padding,) * 2,) * 2)
        return x if bias is None else add_bias(x, bias)


def conv(
    in_features: int,
    features: int,
    size: int,
    *,
    stride: int = 1,
    padding: int = 0,
    bias: bool = False,
    dtype: jax.typing.DTypeLike | None = None,
    kernel_init: nn.initializers.Initializer = default_kernel_init,
    bias_init: nn.initializers.Initializer | None = None,
    name: str | None = None,
) -> Conv:
    """Returns a square convolution padded by `padding` on every side.

    Args:
        in_features: Channels that it will be given; they set the spread of a default bias.
        features: Channels that it gives.
        size: Side of the kernel, in pixels.
        stride: Step, in pixels.
        padding: Zeros on each side, in pixels.
        bias: Whether it has one.
        dtype: Type of the computation; None for the promoted type of inputs and parameters.
        kernel_init: Initializer of the kernel.
        bias_init: Initializer of the bias; None for PyTorch's default.
        name: Name of the submodule, where it is made inside a compact method.

    Source: torch.nn.Conv2d of PyTorch.
    """
    bias_init = (bias_init or default_bias_init(in_features * size * size)) if bias else None
    return Conv(features, size, stride, padding, kernel_init, bias_init, dtype, name=name)


def convolve(
    inputs: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Sequence[tuple[int, int]]
) -> jax.Array:
    """Returns the convolution of images with a kernel; of images smaller than the kernel by a matrix product.

    XLA takes such an image for the kernel and the kernel for the image, which on a CPU makes four convolutions of
    2 x 2 pixels, at the bottom of a U-Net, dearer than all the others together (docs/performance.md).

    Args:
        inputs: [N, H, W, C]
        kernel: [h, w, C, F]
        strides: Down and to the right, in pixels.
        padding: Zeros before and after, of rows and of columns.

    Returns:
        [N, ..., ..., F]
    """
    rows, columns, _, features = kernel.shape
    if tuple(strides) != (1, 1) or inputs.shape[1] * inputs.shape[2] >= rows * columns:
        dimensions = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(inputs, kernel, strides, padding, dimension_numbers=dimensions)
    padded = jnp.pad(inputs, ((0, 0), *padding, (0, 0)))
    height, width = padded.shape[1] - rows + 1, padded.shape[2] - columns + 1
    shifted = [padded[:, i : i + height, j : j + width] for i in range(rows) for j in range(columns)]
    patches = jnp.concatenate(shifted, axis=-1)  # [N, height, width, h * w * C]
    return jnp.dot(patches, kernel.reshape(-1, features))


def linear(
    in_features: int,
    features: int,
    *,
    bias: bool = True,
    dtype: jax.typing.DTypeLike | None = None,
    kernel_init: nn.initializers.Initializer = default_kernel_init,
    bias_init: nn.initializers.Initializer | None = None,
    name: str | None = None,
) -> nn.Dense:
    """Returns a linear layer; arguments as in `conv`.

    Source: torch.nn.Linear of PyTorch.
    """
    return nn.Dense(
        features,
        use_bias=bias,
        dtype=dtype,
        kernel_init=kernel_init,
        bias_init=bias_init or default_bias_init(in_features),
        name=name,
    )


def halve_by_max(x: jax.Array) -> jax.Array:
    """Returns the maximum of each 2 x 2 window of `x` [N, H, W, C] as [N, H // 2, W // 2, C].

    An odd last row or column is left out. The gradient goes to the first maximum of a window, by rows, and NaN
    is kept: PyTorch's rules. Which of the four it was is kept for the gradient, which then is one elementwise
    operation, where that of a windowed reduction is a scatter.

    Source: torch.nn.MaxPool2d(2) of PyTorch.
    """
    n, height, width, channels = x.shape
    even = x[:, : height // 2 * 2, : width // 2 * 2]
    return _first_maximum(even.reshape(n, height // 2, 2, width // 2, 2, channels))


@jax.custom_vjp
def _first_maximum(windows: jax.Array) -> jax.Array:
    """The maximum of each window.  [N, h, 2, w, 2, C] -> [N, h, w, C]"""
    return _first_maximum_forward(windows)[0]


def _first_maximum_forward(windows: jax.Array) -> tuple[jax.Array, jax.Array]:
    best = windows[:, :, 0, :, 0]
    which = jnp.zeros(best.shape, jnp.int8)
    for corner in range(1, 4):
        other = windows[:, :, corner // 2, :, corner % 2]
        stays = (best >= other) | jnp.isnan(best)
        best, which = jnp.where(stays, best, other), jnp.where(stays, which, jnp.int8(corner))
    return best, which


def _first_maximum_backward(which: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    corners = jnp.arange(4, dtype=jnp.int8).reshape(1, 1, 2, 1, 2, 1)
    return (jnp.where(which[:, :, None, :, None] == corners, gradient[:, :, None, :, None], 0),)


_first_maximum.defvjp(_first_maximum_forward, _first_maximum_backward)


def global_mean(x: jax.Array) -> jax.Array:
    """Returns the mean of `x` [N, H, W, C] over the image, [N, C], in at least float32."""
    return jnp.mean(at_least_float32(x), axis=(1, 2))


def at_least_float32(x: jax.Array) -> jax.Array:
    """Returns `x` in float32, or in its own type where that is wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def block(module: Any, remat: bool) -> Any:
    """Returns a class of blocks, called with (x, train), as it is or rematerialized.

    Args:
        module: The class.
        remat: Whether what a block computes inside is computed again for its gradient, in place of being kept:
            less memory for more time, the same values and gradients.

    Source: jax.checkpoint, as flax.linen.remat.
    """
    return nn.remat(module, static_argnums=(2,)) if remat else module


def require_side(network: str, images: jax.Array, side: int) -> None:
    """Checks that `images` [N, H, W, C] are large enough for a network.

    Raises:
        SettingError: A side of the images is under `side` pixels.
    """
    height, width = images.shape[1:3]
    if min(height, width) < side:
        raise SettingError("image size", f"{height} x {width}", f"{network} needs at least {side} x {side}")


def require_positive(field: str, value: int) -> None:
    """Checks that a setting is a whole number from 1.

    Raises:
        SettingError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise SettingError(field, value, "a whole number from 1")
