"""Adaptive-Patch: one of several faint patches in each poisoned image, and cover images that keep their label."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from refine_jax.attacks import pictures, poisoning
from refine_jax.attacks.options import check_number
from refine_jax.attacks.patterns import blend, read_pattern
from refine_jax.attacks.trigger import Attack, Definition
from refine_jax.errors import SettingError


def draw(image_size: tuple[int, int], options: Mapping[str, Any], field: str, key: jax.Array) -> dict[str, np.ndarray]:
    """Draws the built-in patterns where none were given.

    Returns:
        'patterns', uint8 [P, H, W, 3]; black pixels leave the image as it is.
    """
    check_number(f"{field}.cover_rate", options["cover_rate"], 0, 1)
    given = options["patterns"]
    if given is None:
        patterns = pictures.adaptive_patches(image_size, key)
    elif not isinstance(given, list | tuple | np.ndarray) or len(given) == 0:
        raise SettingError(f"{field}.patterns", given, "picture files or arrays, one or more in a tuple")
    else:
        patterns = np.stack([read_pattern(f"{field}.patterns", value, image_size, exact=True) for value in given])
    alphas = options["alphas"]
    if not isinstance(alphas, list | tuple) or len(alphas) != len(patterns):
        raise SettingError(f"{field}.alphas", alphas, f"as many opacities as there are patterns, {len(patterns)}")
    for alpha in alphas:
        check_number(f"{field}.alphas", alpha, 0, 1, above=True)
    return {"patterns": patterns}


def overlay(images: np.ndarray, pattern: np.ndarray, alpha: float) -> np.ndarray:
    """Lays a pattern over images where any of its channels is above 0, with an opacity."""
    mask = pattern.any(axis=-1, keepdims=True).astype(np.float32)
    return blend(images, pattern, mask * np.float32(alpha))


def trigger(images: np.ndarray, attack: Attack) -> np.ndarray:
    """Lays the first half of the patterns over images, opaque; where they overlap, the first is seen."""
    patterns = attack.arrays["patterns"]
    for pattern in patterns[: max(1, len(patterns) // 2)][::-1]:
        images = overlay(images, pattern, 1.0)
    return images


def overlay_one_each(images: np.ndarray, attack: Attack, key: jax.Array) -> np.ndarray:
    """Lays one faint pattern over each image, one pattern after another."""
    del key
    patterns = attack.arrays["patterns"]
    changed = np.empty_like(images)
    for number, (pattern, alpha) in enumerate(zip(patterns, attack.options["alphas"], strict=True)):
        changed[number :: len(patterns)] = overlay(images[number :: len(patterns)], pattern, alpha)
    return changed


# Qi et al., "Revisiting the Assumption of Latent Separability for Backdoor Defenses", ICLR 2023.
ATTACK = Definition(
    options={"patterns": tuple, "alphas": (0.5, 0.5, 0.2, 0.3), "cover_rate": 0.02},
    draw=draw,
    trigger=trigger,
    rate=0.01,
    poison=functools.partial(
        poisoning.dirty_label,
        plant=overlay_one_each,
        cover=overlay_one_each,
        cover_rate=lambda attack: attack.options["cover_rate"],
    ),
)
