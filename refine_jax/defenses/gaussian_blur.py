"""Gaussian blur: fine patterns, a trigger's edges among them, are smoothed away.

References:
    Xu et al., "Feature Squeezing", NDSS 2018, section on spatial smoothing; `scipy.ndimage.gaussian_filter`.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from refine_jax.classifier import Classifier
from refine_jax.defenses import transformation
from refine_jax.defenses.transformation import Transformed
from refine_jax.errors import SettingError

DEFAULTS = {
    "sigma": 1.0,  # pixels
    "sweep": tuple,  # of sigmas; open: `strengths`
}
NEEDS = transformation.NEEDS
STRENGTH = "sigma"


def strengths(image_size: tuple[int, int]) -> tuple[float, ...]:
    """Returns what 0.5, 1 and 2 pixels are at 32 x 32, by the shorter side."""
    return tuple(min(image_size) / part for part in (64, 32, 16))


def check(prefix: str, settings: Mapping[str, Any], num_images: int, image_size: tuple[int, int]) -> None:
    """Refuses a deviation that is none, or wider than the image; arguments as in `registry`.

    Raises:
        SettingError: `sigma` is impossible.
    """
    largest = min(image_size)
    if not 0 < settings["sigma"] <= largest:
        height, width = image_size
        allowed = f"above 0 and at most {largest} for images of {height} x {width}"
        raise SettingError(f"{prefix}.sigma", settings["sigma"], allowed)


def blurring(side: int, sigma: float) -> np.ndarray:
    """The matrix that blurs a row of pixels: SciPy's kernel, cut off at 4 sigma, images mirrored at their edges.

    Args:
        side: Pixels.
        sigma: Standard deviation, in pixels.

    Returns:
        float32 [side, side], whose rows sum to 1.
    """
    from scipy import ndimage  # takes a while to import

    return ndimage.gaussian_filter1d(np.eye(side), sigma, axis=0).astype(np.float32)


def load(
    checkpoints: pathlib.Path | None, classifier: Classifier, settings: Mapping[str, Any], image_size: tuple[int, int]
) -> Transformed:
    """Returns the defended classifier; of checkpoints there are none. Arguments as in `registry`."""
    rows, columns = (jnp.asarray(blurring(side, settings["sigma"])) for side in image_size)
    strength = {"rows": rows, "columns": columns}
    return Transformed(classifier, strength, {}, transformation.apply_operators, image_size)


fit = transformation.fit_nothing(load)
