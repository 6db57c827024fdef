"""Blended: a faint picture over the whole image."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from refine_jax.attacks import pictures
from refine_jax.attacks.options import check_number
from refine_jax.attacks.patterns import blend, read_pattern
from refine_jax.attacks.trigger import Attack, Definition


def draw(image_size: tuple[int, int], options: Mapping[str, Any], field: str, key: jax.Array) -> dict[str, np.ndarray]:
    """Draws the built-in picture where none was given; a picture file is resized to the image's size.

    Returns:
        'pattern', uint8 [H, W, 3].
    """
    check_number(f"{field}.alpha", options["alpha"], 0, 1, above=True)
    if options["pattern"] is None:
        return {"pattern": pictures.sunburst(image_size, key)}
    return {"pattern": read_pattern(f"{field}.pattern", options["pattern"], image_size, resize=True, exact=True)}


def trigger(images: np.ndarray, attack: Attack) -> np.ndarray:
    """Blends the picture in."""
    return blend(images, attack.arrays["pattern"], np.float32(attack.options["alpha"]))


# Chen et al., "Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning", 2017.
ATTACK = Definition(options={"pattern": str, "alpha": 0.1}, draw=draw, trigger=trigger)
