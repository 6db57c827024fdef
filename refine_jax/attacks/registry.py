"""Attacks by name: what there are, how one is made, and how one is made again from what was kept of it."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from refine_jax.attacks import adaptive_patch, badnets, batt, blended, label_consistent, physical, wanet
from refine_jax.attacks.options import check_integer, check_number
from refine_jax.attacks.trigger import Attack
from refine_jax.errors import SettingError, choose, did_you_mean
from refine_jax.keys import named_key

SMALLEST = 16

ATTACKS = {
    "badnets": badnets.ATTACK,
    "blended": blended.ATTACK,
    "wanet": wanet.ATTACK,
    "physical": physical.ATTACK,
    "batt": batt.ATTACK,
    "label_consistent": label_consistent.ATTACK,
    "adaptive_patch": adaptive_patch.ATTACK,
}


def names() -> tuple[str, ...]:
    """Returns the names of all attacks."""
    return tuple(ATTACKS)


def options(name: str) -> dict[str, Any]:
    """Returns an attack's options and their defaults; a type stands where an option is open.

    Raises:
        SettingError: There is no such attack.
    """
    return dict(ATTACKS[choose("attack.name", name, ATTACKS)].options)


def build(
    name: str,
    image_size: int | tuple[int, int],
    *,
    target: int = 0,
    rate: float | None = None,
    seed: int = 0,
    **given: Any,
) -> Attack:
    """Makes an attack; everything about its trigger is drawn here, once.

    Args:
        name: One of `names()`.
        image_size: The side of square images, or (H, W); 16 or more.
        target: The attacker's class.
        rate: Share of the training images to poison, in (0, 1] (label_consistent: of those of the target class);
            None: the attack's own.
        seed: For whatever is random about the trigger.
        **given: Options of the attack, as `options(name)` lists them; None is the default.

    Returns:
        The attack.

    Raises:
        SettingError: A name, number or option that cannot be; the first that was found.
    """
    definition = ATTACKS[choose("attack.name", name, ATTACKS)]
    image_size = _check_image_size(image_size)
    target, seed = check_integer("attack.target", target, 0), check_integer("seed", seed, 0)
    rate = definition.rate if rate is None else check_number("attack.rate", rate, 0, 1, above=True)
    resolved = {option: None if isinstance(value, type) else value for option, value in definition.options.items()}
    for option, value in given.items():
        if option not in resolved:
            there = ", ".join(resolved) + did_you_mean(option, resolved)
            raise SettingError(f"attack.{name}.{option}", _to_json(value), f"no such option; there are {there}")
        if value is not None:
            resolved[option] = value
    arrays = definition.draw(image_size, resolved, f"attack.{name}", named_key(seed, "attack", name))
    described = {option: _to_json(value) for option, value in resolved.items()}
    return Attack(name, target, rate, image_size, seed, described, _read_only(arrays), definition)


def describe(attack: Attack) -> dict[str, Any]:
    """Returns everything about an attack but its arrays, as JSON values."""
    return {
        "name": attack.name,
        "target": attack.target,
        "rate": attack.rate,
        "image_size": list(attack.image_size),
        "seed": attack.seed,
        "options": dict(attack.options),
    }


def rebuild(description: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Attack:
    """Returns the attack of which `describe` and `arrays` were kept; nothing is drawn anew.

    Args:
        description: From `describe`.
        arrays: The attack's `arrays`.

    Raises:
        SettingError: There is no attack of this name.
    """
    fields = {**description, "image_size": tuple(description["image_size"])}
    definition = ATTACKS[choose("attack.name", fields["name"], ATTACKS)]
    return Attack(**fields, arrays=_read_only(arrays), definition=definition)


def _check_image_size(image_size: int | tuple[int, int]) -> tuple[int, int]:
    sides = tuple(image_size) if np.iterable(image_size) else (image_size, image_size)
    if len(sides) != 2:
        raise SettingError("attack.image_size", image_size, "a side, or (H, W)")
    height, width = (check_integer("attack.image_size", side, SMALLEST) for side in sides)
    return height, width


def _read_only(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    copies = {name: np.array(value) for name, value in arrays.items()}
    for copy in copies.values():
        copy.setflags(write=False)
    return copies


def _to_json(value: Any) -> Any:
    """Returns an option as a JSON value; what was given as an array lies in `arrays`."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple) and all(np.ndim(item) == 0 for item in value):
        return [_to_json(item) for item in value]
    if isinstance(value, str | int | float | bool | None):
        return value
    return f"array of shape {np.shape(value)}"
