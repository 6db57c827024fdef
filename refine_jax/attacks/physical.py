"""PhysicalBA: a patch that survives what happens to a printed one, as turning, moving and lighting."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from refine_jax.attacks import badnets, warp
from refine_jax.attacks.options import check_number
from refine_jax.attacks.patterns import PATCH_OPTIONS, draw_patch
from refine_jax.attacks.trigger import Attack, Definition
from refine_jax.datasets.augment import random_flip
from refine_jax.errors import SettingError


def draw(image_size: tuple[int, int], options: Mapping[str, Any], field: str, key: jax.Array) -> dict[str, np.ndarray]:
    """Returns pattern and weight; nothing about them is random."""
    del key
    check_number(f"{field}.brightness", options["brightness"], 0, 1)
    check_number(f"{field}.degrees", options["degrees"], 0, 180)
    check_number(f"{field}.shift", options["shift"], 0, 1)
    scale = options["scale"]
    if not isinstance(scale, list | tuple) or len(scale) != 2:
        raise SettingError(f"{field}.scale", scale, "the smallest and the largest scale")
    smallest = check_number(f"{field}.scale", scale[0], 0, above=True)
    check_number(f"{field}.scale", scale[1], smallest)
    return draw_patch(image_size, options, field)


def augment(images: jax.Array, poisoned: jax.Array, key: jax.Array, attack: Attack) -> jax.Array:
    """Flips, lights, turns, moves and scales all images, benign and poisoned."""
    del poisoned
    options = attack.options
    flip_key, brightness_key, affine_key = jax.random.split(key, 3)
    images = random_flip(images, flip_key)
    images = warp.random_brightness(images, brightness_key, options["brightness"])
    return warp.random_affine(images, affine_key, options["degrees"], options["shift"], tuple(options["scale"]))


# Li et al., "Backdoor Attack in the Physical World", ICLR workshop 2021.
ATTACK = Definition(
    options={**PATCH_OPTIONS, "brightness": 0.1, "degrees": 10.0, "shift": 0.1, "scale": (0.8, 0.9)},
    draw=draw,
    trigger=badnets.trigger,
    augment=augment,
)
