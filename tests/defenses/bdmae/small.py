"""An autoencoder that restores by smoothing, and classifiers and settings for it."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from refine_jax.defenses.bdmae.autoencoder import Restorer, to_patches
from refine_jax.defenses.bdmae.settings import DEFAULTS, Search


@dataclasses.dataclass(frozen=True)
class Smooth:
    """In the place of a MaskedAutoencoder: a patch is of one color, that of the visible patches around it."""

    patch_size: int

    def grid(self, size):
        return size[0] // self.patch_size, size[1] // self.patch_size

    def apply(self, variables, inputs, hidden, visible):
        rows, columns = self.grid(inputs.shape[1:3])
        row, column = np.divmod(np.arange(rows * columns), columns)
        near = np.exp(-((row[:, None] - row) ** 2 + (column[:, None] - column) ** 2) / 4.5)
        means = to_patches(inputs, self.patch_size).reshape(len(inputs), rows * columns, -1, 3).mean(axis=2)
        weights = near * ~hidden[:, None]
        colors = weights @ means / weights.sum(axis=-1, keepdims=True)
        return jnp.tile(colors, (1, 1, self.patch_size**2))


@dataclasses.dataclass(frozen=True)
class Plain:
    """Likewise: every patch is of the color that stands in its parameters, in [0, 1]."""

    patch_size: int
    color: float

    def grid(self, size):
        return size[0] // self.patch_size, size[1] // self.patch_size

    def apply(self, variables, inputs, hidden, visible):
        color = (self.color - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
        shape = (*hidden.shape, 3 * self.patch_size**2)
        return jnp.broadcast_to(np.tile(color, self.patch_size**2), shape).astype(inputs.dtype)


def restorer(module, size):
    return Restorer({}, module, size)


def settings(**changed):
    """The defense's settings with a small autoencoder, which is trained in a moment, and few restorations."""
    network = {"width": 8, "depth": 1, "heads": 2, "decoder_width": 4, "decoder_depth": 1, "decoder_heads": 1}
    short = {"epochs": 2, "batch_size": 16, "outer_repeats": 1, "inner_repeats": 2, "refinements": 1}
    return {**DEFAULTS, "mae_checkpoint": None, **network, **short, **changed}


def search(**changed):
    return Search.of({**DEFAULTS, **changed})
