"""The settings of BDMAE: the released program's, those of the small autoencoder, and what is impossible."""

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any

from refine_jax.defenses.bdmae import scores
from refine_jax.errors import DataError, SettingError
from refine_jax.interop import mae_weights
from refine_jax.networks.mae import MaskedAutoencoder

DEFAULTS = {
    "mae_checkpoint": str,  # a file of published weights; open: a small one is trained on the clean images
    "outer_repeats": 5,
    "inner_repeats": 5,
    "mask_ratio": 0.75,
    "refinements": 10,
    "refinement_step": 0.05,
    "neighbor_weight": 0.5,
    "refined_score": 0.2,  # from which on a patch is among those that are refined, by the image
    "alpha": 0.5,  # weight of the score by the image
    "thresholds": (0.6, 0.55, 0.5, 0.45, 0.4),
    "restored_share": 0.25,  # of an image, is less than this, unless the scores are higher than thresholds rise
    # The small autoencoder, and its training.
    "patch_size": 2,
    "width": 128,
    "depth": 4,
    "heads": 4,
    "decoder_width": 64,
    "decoder_depth": 2,
    "decoder_heads": 4,
    "epochs": 100,
    "batch_size": 128,
    "learning_rate": 1e-3,
    "weight_decay": 0.05,
}
_NETWORK = ("patch_size", "width", "depth", "heads", "decoder_width", "decoder_depth", "decoder_heads")
_COUNTS = ("outer_repeats", "inner_repeats", "epochs", "batch_size", *_NETWORK)
# All patches attend to all: the published models have 196.
_MOST_PATCHES = 1024


@dataclasses.dataclass(frozen=True)
class Search:
    """How a trigger is looked for; the fields are settings of the same names."""

    outer_repeats: int
    inner_repeats: int
    mask_ratio: float
    refinements: int
    refinement_step: float
    neighbor_weight: float
    refined_score: float
    alpha: float
    thresholds: tuple[float, ...]
    restored_share: float

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Search":
        """Returns what the section asks for."""
        given = {field.name: settings[field.name] for field in dataclasses.fields(cls)}
        return cls(**{**given, "thresholds": tuple(given["thresholds"])})


def network(settings: Mapping[str, Any]) -> MaskedAutoencoder:
    """Returns the small autoencoder that the section describes.

    Raises:
        SettingError: There is none of these sizes; the field is called mae.FIELD.
    """
    return MaskedAutoencoder(**{name: settings[name] for name in _NETWORK})


def shared_batches(settings: Mapping[str, Any]) -> dict[str, int]:
    """Returns the batches that several devices share, as in `registry`: with published weights nothing is trained."""
    return {"batch_size": settings["batch_size"]} if settings["mae_checkpoint"] is None else {}


def check(prefix: str, settings: Mapping[str, Any], num_images: int, image_size: tuple[int, int]) -> None:
    """Refuses what BDMAE cannot work with; reads the checkpoint where one is given.

    Args:
        prefix: Name of the section, for the error.
        settings: `DEFAULTS`, with other values.
        num_images: Clean images there are.
        image_size: (H, W).

    Raises:
        SettingError: The first setting that is impossible, or the checkpoint is missing or no masked autoencoder.
    """
    for name, value in settings.items():
        if name in ("mae_checkpoint", "thresholds"):
            continue
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise SettingError(f"{prefix}.{name}", value, "a finite number")
        if name in _COUNTS:
            fine, allowed = isinstance(value, int) and value >= 1, "a whole number, 1 or more"
        elif name == "refinements":
            fine, allowed = isinstance(value, int) and value >= 0, "a whole number, 0 or more"
        elif name in ("alpha", "refined_score"):
            fine, allowed = 0 <= value <= 1, "0 to 1"
        elif name == "mask_ratio":
            fine, allowed = 0 < value < 1, "above 0 and below 1"
        elif name == "restored_share":
            fine, allowed = 0 < value <= 1, "above 0 and at most 1"
        elif name == "learning_rate":
            fine, allowed = value > 0, "above 0"
        else:
            fine, allowed = value >= 0, "0 or more"
        if not fine:
            raise SettingError(f"{prefix}.{name}", value, allowed)
    thresholds = settings["thresholds"]
    numbers = all(isinstance(x, int | float) and 0 < x < 1 for x in thresholds)
    if not thresholds or not numbers or any(a <= b for a, b in itertools.pairwise(thresholds)):
        allowed = "numbers between 0 and 1, each below the one before"
        raise SettingError(f"{prefix}.thresholds", thresholds, allowed)
    if settings["mae_checkpoint"] is None:
        patches = _check_small(prefix, settings, num_images, image_size)
    else:
        patches = _check_published(f"{prefix}.mae_checkpoint", settings["mae_checkpoint"])
    _check_masks(prefix, settings, patches)


def _check_small(prefix: str, settings: Mapping[str, Any], num_images: int, image_size: tuple[int, int]) -> int:
    try:
        network(settings)
    except SettingError as error:
        raise SettingError(f"{prefix}.{error.field.removeprefix('mae.')}", error.value, error.allowed) from None
    height, width = image_size
    side = settings["patch_size"]
    fitting = [n for n in range(1, min(height, width) + 1) if not height % n and not width % n]
    possible = [n for n in fitting if 2 <= height * width // n**2 <= _MOST_PATCHES]
    if side not in possible:
        allowed = (
            f"{', '.join(map(str, possible)) or 'none'} for images of {height} x {width}, which are cut into 2 to "
            f"{_MOST_PATCHES} whole patches; or {prefix}.mae_checkpoint, which takes images of any size"
        )
        raise SettingError(f"{prefix}.patch_size", side, allowed)
    if settings["batch_size"] > num_images:
        raise SettingError(f"{prefix}.batch_size", settings["batch_size"], f"at most the {num_images} clean images")
    return height * width // side**2


def _check_published(field: str, path: str) -> int:
    try:
        published = mae_weights.load(path)
    except DataError as error:
        raise SettingError(field, path, f"a file of a masked autoencoder's weights; {error}") from error
    return (published.side // published.module.patch_size) ** 2


def _check_masks(prefix: str, settings: Mapping[str, Any], patches: int) -> None:
    ratio, repeats = settings["mask_ratio"], settings["inner_repeats"]
    hidden = scores.hidden_count(patches, ratio)
    if not 1 <= hidden < patches:
        raise SettingError(f"{prefix}.mask_ratio", ratio, f"what leaves some of {patches} patches hidden, some seen")
    if repeats * hidden < patches:
        least = -(-patches // hidden)
        allowed = f"{least} or more with {prefix}.mask_ratio = {ratio}, so that every patch is hidden once"
        raise SettingError(f"{prefix}.inner_repeats", repeats, allowed)
