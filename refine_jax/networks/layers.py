"""Convolution, linear layer and pooling with PyTorch's parameters: padding, initialization, ties."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from refine_jax.errors import SettingError

# PyTorch's default for weights, uniform within 1 / sqrt(fan_in), is Kaiming's uniform rule with a = sqrt(5).
default_kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def default_bias_init(fan_in: int) -> nn.initializers.Initializer:
    """Returns PyTorch's default initializer of a bias: uniform within 1 / sqrt(fan_in)."""
    bound = fan_in**-0.5

    def init(key: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


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
) -> nn.Conv:
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
    return nn.Conv(
        features,
        (size, size),
        strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        use_bias=bias,
        dtype=dtype,
        kernel_init=kernel_init,
        bias_init=bias_init or default_bias_init(in_features * size * size),
        name=name,
    )


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
    is kept: PyTorch's rules. Comparisons of the four corners do this with elementwise operations, both ways,
    where the gradient of a windowed reduction is a scatter.

    Source: torch.nn.MaxPool2d(2) of PyTorch.
    """
    n, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    x = x.reshape(n, height // 2, 2, width // 2, 2, channels)
    upper = _first_maximum(x[:, :, 0, :, 0], x[:, :, 0, :, 1])
    lower = _first_maximum(x[:, :, 1, :, 0], x[:, :, 1, :, 1])
    return _first_maximum(upper, lower)


def _first_maximum(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.where((a >= b) | jnp.isnan(a), a, b)


def global_mean(x: jax.Array) -> jax.Array:
    """Returns the mean of `x` [N, H, W, C] over the image, [N, C], in at least float32."""
    return jnp.mean(at_least_float32(x), axis=(1, 2))


def at_least_float32(x: jax.Array) -> jax.Array:
    """Returns `x` in float32, or in its own type where that is wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


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
