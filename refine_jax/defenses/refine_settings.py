"""REFINE's settings: the presets and their fields, what they mean to the objective, and what is impossible."""

import dataclasses
import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from refine_jax.datasets import corruptions
from refine_jax.datasets.images import NO_LABEL
from refine_jax.defenses.mapping import MAPPINGS
from refine_jax.errors import SettingError, choose, did_you_mean
from refine_jax.keys import LARGEST_SEED
from refine_jax.losses import mapped_binary_cross_entropy, mapped_cross_entropy
from refine_jax.training import optimizer

LOSSES = {"cross_entropy": mapped_cross_entropy, "binary_cross_entropy": mapped_binary_cross_entropy}
UNET_INPUTS = ("unit", "normalized")
CONTRASTIVE_FEATURES = ("pixels", "features", "logits")
PSEUDO_LABELS = ("augmented", "original")

PRESETS = {
    # What the paper states.
    "paper": {"loss": "cross_entropy", "temperature": 0.1, "base_temperature": None, "unet_input": "unit"},
    # What the authors' released program computes.
    "authors_code": {
        "loss": "binary_cross_entropy",
        "temperature": 0.07,
        "base_temperature": 0.07,
        "unet_input": "normalized",
    },
}

# The section 'defense' of a configuration. None in a field of PRESETS: what the preset says.
DEFAULTS = {
    "preset": "paper",
    "loss": None,
    "temperature": None,
    "base_temperature": None,
    "unet_input": None,
    "sup_weight": 0.1,
    "contrastive_features": "pixels",
    "pseudo_labels": "augmented",
    "mapping": "derangement",
    "mapping_seed": None,
    "width": 64,
    "depth": 4,
    "data_fraction": 1.0,
    "clean_classes": None,
    "clean_corruption": corruptions.NONE,
    "clean_severity": 3,
    **optimizer.DEFAULTS,
    "batch_size": 256,
    "learning_rate": 0.01,
    "decay": 0.8,
}

# What fields are of that may be left open; the others are of what their default is.
_OPEN = {
    **{"loss": str, "temperature": float, "base_temperature": float, "unet_input": str},
    **{"mapping_seed": int, "clean_classes": tuple},
}
_KINDS: dict[type, tuple[Any, str]] = {
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a number"),
    str: (str, "a text"),
    tuple: (tuple | list, "a tuple"),
}

# Fields that came later, and what was so before there were any: an outcome of that time is one of these values.
LATER = {
    "contrastive_features": "pixels",
    "pseudo_labels": "augmented",
    "mapping": "derangement",
    "mapping_seed": None,
    "clean_classes": None,
    "clean_corruption": corruptions.NONE,
    "clean_severity": 3,
}


@dataclasses.dataclass(frozen=True)
class Objective:
    """What the U-Net is asked for, nothing left open.

    Attributes:
        loss: Key of `LOSSES`.
        temperature: Of the contrastive loss.
        base_temperature: Of the contrastive loss; None: no factor in front of it.
        unet_input: 'unit': the U-Net sees images in [0, 1], and the classifier preprocesses T(x) as it does
            any image. 'normalized': the U-Net sees what the classifier's preprocessing makes of the image, and
            T(x) goes to the network as it is.
        sup_weight: Weight of the contrastive loss; 0 leaves it out.
        contrastive_features: What the contrastive loss compares, scaled to unit length: 'pixels' of T(x); 'features',
            the mean over the classifier's last feature map of T(x), or its class token; its 'logits' of T(x).
        pseudo_labels: Which image the classifier is asked about for its pseudo-label: the 'augmented' one that T is
            shown, or the 'original', before it was augmented.
    """

    loss: str
    temperature: float
    base_temperature: float | None
    unet_input: str
    sup_weight: float
    contrastive_features: str = "pixels"
    pseudo_labels: str = "augmented"

    @classmethod
    def of(cls, settings: "Mapping[str, Any] | Objective | None") -> "Objective":
        """Fills settings up from their preset.

        Args:
            settings: The section 'defense' of a configuration, a mapping with some of its fields, or None for
                the paper's. `base_temperature` = 0 means no factor, as None does in a plain mapping; in a
                ConfigDict None means the preset's.
        """
        if isinstance(settings, Objective):
            return settings
        given = _given(settings)
        preset = PRESETS[choose("defense.preset", given.get("preset", DEFAULTS["preset"]), PRESETS)]
        own = {name: DEFAULTS[name] for name in ("sup_weight", "contrastive_features", "pseudo_labels")}
        values: dict[str, Any] = {**own, **preset}
        values |= {name: given[name] for name in values if name in given}
        values["base_temperature"] = values["base_temperature"] or None
        choose("defense.loss", values["loss"], LOSSES)
        choose("defense.unet_input", values["unet_input"], UNET_INPUTS)
        choose("defense.contrastive_features", values["contrastive_features"], CONTRASTIVE_FEATURES)
        choose("defense.pseudo_labels", values["pseudo_labels"], PSEUDO_LABELS)
        return cls(**values)


def check(prefix: str, settings: Mapping[str, Any], num_images: int, image_size: tuple[int, int]) -> None:
    """Refuses what REFINE cannot be trained with.

    Args:
        prefix: Name of the section, for the error.
        settings: The section 'defense' of a configuration, whole.
        num_images: Clean images there are.
        image_size: (H, W).

    Raises:
        SettingError: The first setting that is impossible.
    """
    optimizer.check(prefix, settings)
    wanted = Objective.of(settings)
    if not 0 < wanted.temperature < np.inf:
        raise SettingError(f"{prefix}.temperature", wanted.temperature, "a number above 0")
    if wanted.base_temperature is not None and not 0 < wanted.base_temperature < np.inf:
        raise SettingError(f"{prefix}.base_temperature", wanted.base_temperature, "0 (no factor) or more")
    if not 0 <= wanted.sup_weight < np.inf:
        raise SettingError(f"{prefix}.sup_weight", wanted.sup_weight, "0 or more")
    choose(f"{prefix}.mapping", settings["mapping"], MAPPINGS)
    mapping_seed = settings["mapping_seed"]
    if mapping_seed is not None and not 0 <= mapping_seed <= LARGEST_SEED:
        raise SettingError(f"{prefix}.mapping_seed", mapping_seed, f"0 to {LARGEST_SEED}")
    if mapping_seed is not None and settings["mapping"] != "derangement":
        allowed = f"nothing with {prefix}.mapping={settings['mapping']}, for which nothing is drawn"
        raise SettingError(f"{prefix}.mapping_seed", mapping_seed, allowed)
    if settings["width"] < 1:
        raise SettingError(f"{prefix}.width", settings["width"], "1 or more")
    deepest = int(np.log2(min(image_size)))
    if not 1 <= settings["depth"] <= deepest:
        raise SettingError(
            f"{prefix}.depth", settings["depth"], f"1 to {deepest} for images of {image_size[0]} x {image_size[1]}"
        )
    if not 0 < settings["data_fraction"] <= 1:
        raise SettingError(f"{prefix}.data_fraction", settings["data_fraction"], "above 0 and at most 1")
    choose(f"{prefix}.clean_corruption", settings["clean_corruption"], (corruptions.NONE, *corruptions.CORRUPTIONS))
    if settings["clean_severity"] not in corruptions.SEVERITIES:
        raise SettingError(f"{prefix}.clean_severity", settings["clean_severity"], "1 to 5")
    available = round(settings["data_fraction"] * num_images)
    if settings["batch_size"] > available:
        raise SettingError(f"{prefix}.batch_size", settings["batch_size"], f"at most the {available} clean images")
    if settings["batch_size"] < 2:
        raise SettingError(f"{prefix}.batch_size", settings["batch_size"], "2 or more, for the contrastive loss")


def clean_rows(prefix: str, settings: Mapping[str, Any], labels: np.ndarray, num_classes: int) -> np.ndarray | None:
    """Returns which clean images REFINE is fitted to, by their labels; it sees the images alone.

    Args:
        prefix: Name of the section, for the error.
        settings: The section 'defense' of a configuration, whole.
        labels: Of all clean images. int32 [N]
        num_classes: K.

    Returns:
        Their numbers, in order; None: all.

    Raises:
        SettingError: `clean_classes` are no classes, or labels are not known.
    """
    classes = settings["clean_classes"]
    if classes is None:
        return None
    field = f"{prefix}.clean_classes"
    if (labels == NO_LABEL).any():
        raise SettingError(field, tuple(classes), "nothing, as the labels of these images are not known")
    known = all(label in range(num_classes) for label in classes)
    if not classes or not known or len(set(classes)) < len(classes):
        raise SettingError(field, tuple(classes), f"one or more classes, each once, 0 to {num_classes - 1}")
    return np.flatnonzero(np.isin(labels, classes))


def complete(settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns the whole section 'defense' of which some fields, or none, are given.

    Raises:
        SettingError: It is no mapping, a field is unknown, or its value of another type.
    """
    if not (settings is None or isinstance(settings, Mapping | ConfigDict)):
        raise SettingError("settings", f"of type {type(settings).__name__}", "a mapping of fields to values, or None")
    given = _given(settings)
    for name in given:
        if name not in DEFAULTS:
            allowed = ", ".join(DEFAULTS) + did_you_mean(name, DEFAULTS)
            raise SettingError(f"defense.{name}", given[name], f"one of the fields {allowed}")
        _check_type(name, given[name])
    wanted = Objective.of(given)
    return {**DEFAULTS, **given, **dataclasses.asdict(wanted)}


def _check_type(name: str, value: Any) -> None:
    """Refuses a value that is of another type than the field, as a plain mapping may hold."""
    if value is None and name in _OPEN:
        return
    kind, allowed = _KINDS[_OPEN.get(name, type(DEFAULTS[name]))]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise SettingError(f"defense.{name}", value, allowed)


def _given(settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """The settings that say something: None in a field of the presets does not.

    But for `base_temperature` in a plain mapping, where None means no factor.
    """
    says = () if isinstance(settings, ConfigDict) else ("base_temperature",)
    return {k: v for k, v in (settings or {}).items() if v is not None or k not in PRESETS["paper"] or k in says}
