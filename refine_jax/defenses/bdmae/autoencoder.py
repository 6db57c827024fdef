"""Images of any size through a masked autoencoder, and the way between its patches and an image's pixels."""

import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from refine_jax.networks.mae import MaskedAutoencoder

# Of ImageNet's channels, by which the published models normalize; the small ones do the same.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Restorer:
    """A masked autoencoder for images of any size; a pytree.

    Attributes:
        params: Its parameters.
        module: The network.
        size: (H, W) of the images that it takes; others are resized on the way in, and restorations on the way back.
    """

    params: Any
    module: MaskedAutoencoder = dataclasses.field(metadata={"static": True})
    size: tuple[int, int] = dataclasses.field(metadata={"static": True})

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across."""
        return self.module.grid(self.size)

    @property
    def patches(self) -> int:
        """T, how many patches an image has."""
        rows, columns = self.grid
        return rows * columns

    def of(self, images: jax.Array) -> Callable[..., jax.Array]:
        """Returns the function that restores hidden parts of images.

        Args:
            images: Float in [0, 1]. [N, H, W, 3]

        Returns:
            (hidden bool [N, T], visible) -> the images with what is hidden restored, in [0, 1] [N, H, W, 3]; `visible`
            is the most patches of an image that are not hidden, None: T.

        References:
            `cpredict` of the released program: bilinear to the network's size, nearest pixel back.
        """
        chex.assert_shape(images, (None, None, None, 3))
        n, height, width, _ = images.shape
        inputs = images
        if (height, width) != self.size:
            inputs = jax.image.resize(images, (n, *self.size, 3), "bilinear", antialias=False)
        inputs = normalized(inputs)
        rows, columns = nearest(self.size[0], height), nearest(self.size[1], width)

        def restore(hidden: jax.Array, visible: int | None = None) -> jax.Array:
            patches: Any = self.module.apply({"params": self.params}, inputs, hidden, visible)
            pixels = to_pixels(patches, self.grid, self.module.patch_size)[:, rows][:, :, columns]
            pixels = pixels * jnp.asarray(_STD, pixels.dtype) + jnp.asarray(_MEAN, pixels.dtype)
            return jnp.where(self.on_pixels(hidden, (height, width)), jnp.clip(pixels, 0, 1), images)

        return restore

    def on_pixels(self, values: jax.Array, image_size: tuple[int, int]) -> jax.Array:
        """Gives each pixel of an image the value of its patch.  [N, T] -> [N, H, W, 1]"""
        side = self.module.patch_size
        rows, columns = (nearest(own, given) // side for own, given in zip(self.size, image_size, strict=True))
        return values.reshape(len(values), *self.grid)[:, rows][:, :, columns][..., None]

    def at_patches(self, values: jax.Array) -> jax.Array:
        """Gives each patch the value of the nearest pixel, by its upper left corner.  [N, H, W] -> [N, T]"""
        rows, columns = (nearest(given, own) for given, own in zip(values.shape[1:], self.grid, strict=True))
        return values[:, rows][:, :, columns].reshape(len(values), -1)


def normalized(images: jax.Array) -> jax.Array:
    """Turns images in [0, 1], RGB, into what a masked autoencoder takes.  [N, H, W, 3]"""
    return (images - jnp.asarray(_MEAN, images.dtype)) / jnp.asarray(_STD, images.dtype)


def nearest(size: int, new_size: int) -> np.ndarray:
    """Returns which of `size` places each of `new_size` takes its value from, as PyTorch's 'nearest' has it."""
    return np.arange(new_size) * size // new_size


def to_patches(images: jax.Array, side: int) -> jax.Array:
    """Cuts images into patches, row by row.  [N, R * side, C * side, 3] -> [N, R * C, side * side * 3]"""
    n, height, width, channels = images.shape
    cut = images.reshape(n, height // side, side, width // side, side, channels).transpose(0, 1, 3, 2, 4, 5)
    return cut.reshape(n, -1, side * side * channels)


def to_pixels(patches: jax.Array, grid: tuple[int, int], side: int) -> jax.Array:
    """Puts patches together.  [N, R * C, side * side * 3] -> [N, R * side, C * side, 3]"""
    rows, columns = grid
    cut = patches.reshape(len(patches), rows, columns, side, side, 3).transpose(0, 1, 3, 2, 4, 5)
    return cut.reshape(len(patches), rows * side, columns * side, 3)
