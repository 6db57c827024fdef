"""BATT: a rotation by a certain angle."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from refine_jax.attacks import warp
from refine_jax.attacks.options import check_number
from refine_jax.attacks.trigger import Attack, Definition
from refine_jax.batches import map_batches
from refine_jax.errors import SettingError


def draw(image_size: tuple[int, int], options: Mapping[str, Any], field: str, key: jax.Array) -> dict[str, np.ndarray]:
    """Returns where each pixel comes from: 'source', int32 [H, W]; nothing about it is random."""
    del key
    angle = check_number(f"{field}.angle", options["angle"], -360, 360)
    if angle % 360 == 0:
        raise SettingError(f"{field}.angle", angle, "-360 to 360, but none that leaves images as they are")
    check_number(f"{field}.benign_angle", options["benign_angle"], 0, 180)
    return {"source": warp.rotation_source(image_size, angle)}


def trigger(images: np.ndarray, attack: Attack) -> np.ndarray:
    """Rotates images; the corners turn black."""
    return map_batches(_take_pixels, images, (attack.arrays["source"],))


_take_pixels = jax.jit(warp.take_pixels)


def augment(images: jax.Array, poisoned: jax.Array, key: jax.Array, attack: Attack) -> jax.Array:
    """Rotates benign images a little, so that only the angle of the trigger tells."""
    rotated = warp.random_affine(images, key, attack.options["benign_angle"])
    return jnp.where(poisoned[:, None, None, None], images, rotated)


# Xu et al., "BATT: Backdoor Attack with Transformation-based Triggers", ICASSP 2023.
ATTACK = Definition(options={"angle": 16.0, "benign_angle": 10.0}, draw=draw, trigger=trigger, augment=augment)
