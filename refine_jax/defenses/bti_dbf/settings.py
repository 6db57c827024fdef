"""The settings of BTI-DBF: the released program's, and what is impossible."""

import math
from collections.abc import Mapping
from typing import Any

from refine_jax.errors import SettingError

# Of both variants: what finds the trigger.
INVERSION = {
    "data_fraction": 0.05,  # of the clean training images: 2,500 of CIFAR-10's
    "batch_size": 128,
    "width": 32,
    "depth": 4,
    "learning_rate": 1e-3,  # of generator and purifier
    "mask_learning_rate": 0.01,
    "pretraining_epochs": 50,
    "rounds": 5,
    "mask_epochs": 20,
    "inversion_epochs": 30,
    "norm_bound": 0.3,
    "feature_bound": 3.0,
    "triggered_share": 0.1,  # of a batch, when purifier or classifier is trained; one image more
    "noise": 0.03,  # deviation of what is added to a generator's input where it is asked and not trained
    "crop_padding": 4,
}
PURIFICATION = {**INVERSION, "purification_epochs": 30, "purification_norm_bound": 0.05}
UNLEARNING = {**INVERSION, "unlearning_epochs": 30, "unlearning_learning_rate": 1e-4}

# Nothing that is drawn depends on how many rounds follow: a fit holds the outcome of each shorter one.
STRENGTH = "rounds"
# What came later, and the value that says what was so before.
LATER = {"sweep": None}


def strengths(image_size: tuple[int, int]) -> tuple[int, ...]:
    """Returns no numbers of rounds: each takes two passes over the test set, so they are looked at when asked for."""
    return ()


def check_strength(prefix: str, settings: Mapping[str, Any], value: int) -> None:
    """Refuses a number of rounds that a fit does not come by.

    Args:
        prefix: Name of the section, for the error.
        settings: That it is fitted with.
        value: Rounds.

    Raises:
        SettingError: They are more than are done.
    """
    if value > settings[STRENGTH]:
        raise SettingError(f"{prefix}.{STRENGTH}", value, f"at most the {settings[STRENGTH]} of {prefix}.{STRENGTH}")


def check(prefix: str, settings: Mapping[str, Any], num_images: int, image_size: tuple[int, int]) -> None:
    """Refuses what BTI-DBF cannot be fitted with.

    Args:
        prefix: Name of the section, for the error.
        settings: `PURIFICATION` or `UNLEARNING`, with other values.
        num_images: Clean images there are.
        image_size: (H, W).

    Raises:
        SettingError: The first setting that is impossible.
    """
    for name, value in settings.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise SettingError(f"{prefix}.{name}", value, "a finite number")
        if name.endswith("epochs") or name in ("batch_size", "width", "depth", "rounds"):
            fine, allowed = isinstance(value, int) and value >= 1, "a whole number, 1 or more"
        elif name in ("data_fraction", "triggered_share"):
            fine, allowed = 0 < value <= 1, "above 0 and at most 1"
        elif name in ("noise", "crop_padding"):
            fine, allowed = value >= 0, "0 or more"
        else:
            fine, allowed = value > 0, "above 0"
        if not fine:
            raise SettingError(f"{prefix}.{name}", value, allowed)
    deepest = int(math.log2(min(image_size))) - 1
    if settings["depth"] > deepest:
        height, width = image_size
        raise SettingError(f"{prefix}.depth", settings["depth"], f"1 to {deepest} for images of {height} x {width}")
    if settings["crop_padding"] > min(image_size):
        raise SettingError(f"{prefix}.crop_padding", settings["crop_padding"], "at most a side of the images")
    available = round(settings["data_fraction"] * num_images)
    if settings["batch_size"] > available:
        allowed = f"at most the {available} clean images that {prefix}.data_fraction leaves"
        raise SettingError(f"{prefix}.batch_size", settings["batch_size"], allowed)
