"""Bit depth: each channel is rounded to few levels, among which faint changes are lost.

References:
    Xu et al., "Feature Squeezing: Detecting Adversarial Examples in Deep Neural Networks", NDSS 2018; Guo et al.,
    "Countering Adversarial Images using Input Transformations", ICLR 2018, with 3 bits.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from refine_jax.classifier import Classifier
from refine_jax.defenses import transformation
from refine_jax.defenses.transformation import Transformed
from refine_jax.errors import SettingError

DEFAULTS = {
    "bits": 3,  # of each channel that stay
    "sweep": tuple,  # of bits; open: `strengths`
}
NEEDS = transformation.NEEDS
STRENGTH = "bits"


def strengths(image_size: tuple[int, int]) -> tuple[int, ...]:
    """Returns one to five bits, for images of any size."""
    return (1, 2, 3, 4, 5)


def check(prefix: str, settings: Mapping[str, Any], num_images: int, image_size: tuple[int, int]) -> None:
    """Refuses to leave no bit, or all of them; arguments as in `registry`.

    Raises:
        SettingError: `bits` is impossible.
    """
    if not 1 <= settings["bits"] <= 7:
        raise SettingError(f"{prefix}.bits", settings["bits"], "1 to 7; images have 8")


def reduce_depth(images: jax.Array, largest: jax.Array) -> jax.Array:
    """Rounds to evenly spaced levels from 0 to 1.

    Args:
        images: Float in [0, 1]. [N, H, W, C]
        largest: Number of the highest level, counted from 0: 2**bits - 1. Scalar

    Returns:
        Of the same shape.
    """
    return jnp.round(images * largest) / largest


def load(
    checkpoints: pathlib.Path | None, classifier: Classifier, settings: Mapping[str, Any], image_size: tuple[int, int]
) -> Transformed:
    """Returns the defended classifier; of checkpoints there are none. Arguments as in `registry`."""
    return Transformed(classifier, {"largest": jnp.float32(2 ** settings["bits"] - 1)}, {}, reduce_depth, image_size)


fit = transformation.fit_nothing(load)
