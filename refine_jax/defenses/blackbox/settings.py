"""The settings of the black-box defenses, and what is impossible."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from refine_jax import networks
from refine_jax.defenses import refine_settings
from refine_jax.defenses.blackbox.oracle import ANSWERS
from refine_jax.errors import SettingError, choose, did_you_mean
from refine_jax.training import optimizer

# Of the U-Net's training, as REFINE's own.
UNET = {name: refine_settings.DEFAULTS[name] for name in ("sup_weight", "width", "depth", "data_fraction")} | {
    "temperature": 0.1,
    **optimizer.DEFAULTS,
    **{name: refine_settings.DEFAULTS[name] for name in ("batch_size", "learning_rate", "decay")},
}
# Of what the victim is asked. A type stands for what may be left open.
ASKED = {
    "budget": int,  # queries; open: any number
    "checked": 200,  # clean images that the victim is shown behind the trained U-Net
}
# Fields of the registry's sections alone: an oracle says both of itself.
OF_AN_ORACLE = ("answers", "budget")
# Of the local copy: as a victim is trained.
COPY: dict[str, Any] = {
    "name": "resnet18",
    "width": 64,
    "held_out": 0.1,  # of the images, on which copy and victim are compared
    **optimizer.DEFAULTS,
    "batch_size": 128,
    "learning_rate": 0.1,
    "decay": 0.1,
}
SUBSTITUTE = {"answers": "probabilities", **ASKED, "copy": COPY, **UNET}
ZEROTH_ORDER = {**ASKED, "directions": 10, "smoothing": 0.05, "block": 1, **UNET}


def complete(settings: Mapping[str, Any] | None, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all settings of a defense of which some, or none, are given, for an oracle that says the rest.

    Raises:
        SettingError: A field is unknown.
    """
    return _filled("", settings or {}, {name: of for name, of in defaults.items() if name not in OF_AN_ORACLE})


def _filled(prefix: str, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    for name in given:
        if name not in defaults:
            allowed = f"one of the fields {', '.join(defaults)}{did_you_mean(name, defaults)}"
            raise SettingError(prefix + name, given[name], allowed)
    filled = {**defaults, **given}
    nested = {name: of for name, of in defaults.items() if isinstance(of, Mapping)}
    return filled | {name: _filled(f"{prefix}{name}.", given.get(name, {}), of) for name, of in nested.items()}


def of_unet(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns REFINE's settings, whole, that train the U-Net on images that were chosen before."""
    own = {name: settings[name] for name in UNET}
    return refine_settings.complete({**own, "data_fraction": 1.0})


def shared_batches(settings: Mapping[str, Any]) -> dict[str, int]:
    """Returns the batches that several devices share, as in `registry`: a step that asks is one device's."""
    if "copy" not in settings:
        return {}
    return {"batch_size": settings["batch_size"], "copy.batch_size": settings["copy"]["batch_size"]}


def check(prefix: str, settings: Mapping[str, Any], num_images: int, image_size: tuple[int, int]) -> None:
    """Refuses what a black-box defense cannot be fitted with; arguments as in `registry`.

    Args:
        prefix: Name of the section, for the error.
        settings: `SUBSTITUTE` or `ZEROTH_ORDER`, with other values, with or without the fields of `OF_AN_ORACLE`.
        num_images: Clean images there are.
        image_size: (H, W).

    Raises:
        SettingError: The first setting that is impossible.
    """
    if jax.process_count() > 1:
        raise SettingError("--processes", jax.process_count(), f"1 with {prefix}: each would ask the victim by itself")
    whole = refine_settings.complete({name: settings[name] for name in UNET})
    refine_settings.check(prefix, whole, num_images, image_size)
    if "answers" in settings:
        choose(f"{prefix}.answers", settings["answers"], ANSWERS)
    _require_whole(prefix, settings, "checked", 0)
    if settings.get("budget") is not None:
        _require_whole(prefix, settings, "budget", 1)
    chosen = round(settings["data_fraction"] * num_images)
    if "copy" in settings:
        _check_copy(f"{prefix}.copy", settings["copy"], chosen)
        least, of = settings["copy"]["batch_size"], "a batch of the copy's training"
    else:
        _check_estimates(prefix, settings, image_size)
        least, of = 1 + 2 * settings["directions"] * settings["batch_size"], "a step"
    # What it takes in all depends on how many images are alike, and is counted by whoever asks.
    least += settings["checked"]
    if settings.get("budget") is not None and settings["budget"] < least:
        allowed = f"{least} or more: {settings['checked']} to check the outcome, and {of}"
        raise SettingError(f"{prefix}.budget", settings["budget"], allowed)
    if "copy" in settings:
        _check_network(f"{prefix}.copy.name", settings["copy"], image_size)


def network_of(
    copy: Mapping[str, Any], num_classes: int, image_size: tuple[int, int], *, remat: bool = False
) -> tuple[nn.Module, dict[str, Any]]:
    """Returns the local copy's network, and the options that it has of these settings.

    Args:
        copy: `COPY` with other values.
        num_classes: K.
        image_size: (H, W).
        remat: Whether its blocks are rematerialized, where it can.

    Raises:
        SettingError: A setting is none that the network can have.
    """
    takes = networks.options(copy["name"])
    options = {name: of for name, of in (("width", copy["width"]), ("image_size", image_size[0])) if name in takes}
    asked = {"remat": True} if remat and "remat" in takes else {}
    return networks.build(copy["name"], num_classes, **options, **asked), options


def _check_copy(prefix: str, copy: Mapping[str, Any], num_images: int) -> None:
    optimizer.check(prefix, copy)
    choose(f"{prefix}.name", copy["name"], networks.names())
    _require_whole(prefix, copy, "width", 1)
    networks.check_width(f"{prefix}.width", copy["width"], COPY["width"], copy["name"])
    if not 0 <= copy["held_out"] < 1:
        raise SettingError(f"{prefix}.held_out", copy["held_out"], "0 or more and below 1")
    available = num_images - round(copy["held_out"] * num_images)
    if copy["batch_size"] > available:
        allowed = f"at most the {available} clean images that are not held out"
        raise SettingError(f"{prefix}.batch_size", copy["batch_size"], allowed)


def _check_network(field: str, copy: Mapping[str, Any], image_size: tuple[int, int]) -> None:
    """Refuses a network that cannot take these images, without making it: else it shows when all queries are paid."""
    images = jax.ShapeDtypeStruct((1, *image_size, 3), jnp.float32)
    try:
        network, _ = network_of(copy, 2, image_size)
        jax.eval_shape(network.init, jax.random.key(0), images)
    except SettingError as error:
        allowed = f"a network that takes images of {image_size[0]} x {image_size[1]}; of this one, {error}"
        raise SettingError(field, copy["name"], allowed) from error


def _check_estimates(prefix: str, settings: Mapping[str, Any], image_size: tuple[int, int]) -> None:
    _require_whole(prefix, settings, "directions", 1)
    if not 0 < settings["smoothing"] <= 1:
        raise SettingError(f"{prefix}.smoothing", settings["smoothing"], "above 0 and at most 1, in units of an image")
    _require_whole(prefix, settings, "block", 1)
    if any(side % settings["block"] for side in image_size):
        allowed = f"a divisor of both sides, {image_size[0]} and {image_size[1]}"
        raise SettingError(f"{prefix}.block", settings["block"], allowed)


def _require_whole(prefix: str, settings: Mapping[str, Any], name: str, least: int) -> None:
    value = settings[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise SettingError(f"{prefix}.{name}", value, f"a whole number, {least} or more")
