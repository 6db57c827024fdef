"""BadNets: a patch at the lower right."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from refine_jax.attacks.patterns import PATCH_OPTIONS, draw_patch, stamp
from refine_jax.attacks.trigger import Attack, Definition


def draw(image_size: tuple[int, int], options: Mapping[str, Any], field: str, key: jax.Array) -> dict[str, np.ndarray]:
    """Returns pattern and weight; nothing about them is random."""
    del key
    return draw_patch(image_size, options, field)


def trigger(images: np.ndarray, attack: Attack) -> np.ndarray:
    """Stamps the patch."""
    return stamp(images, attack.arrays["pattern"], attack.arrays["weight"])


# Gu et al., "BadNets: Evaluating Backdooring Attacks on Deep Neural Networks", IEEE Access 2019.
ATTACK = Definition(options=PATCH_OPTIONS, draw=draw, trigger=trigger)
