"""The defenses, by name.

A defense is a module with

    DEFAULTS        its settings, the section defense.NAME of a configuration; a type stands for one that is open.
                    REFINE's stand in the section 'defense' itself
    NEEDS           a `contract.Needs`
    check(prefix, settings, num_images, image_size)
                    refuses impossible settings before any work
    fit(classifier, clean, settings, seed, num_classes, journal, execution) -> contract.Fitted
                    clean: a `Split`, whose labels are known only where NEEDS.labels; journal: its `checkpoints` take
                    what `load` reads and an interrupted fit goes on from; None: nothing is left
    load(checkpoints, classifier, settings, image_size) -> defended
                    of a fit that came to its end

where devices share other batches than those of its setting batch_size, if it has got one,

    shared_batches(settings) -> field to size, of those

where some of its settings choose among the clean images by their labels, though it does not need them,

    clean_rows(prefix, settings, labels, num_classes) -> numbers of the images it is given, or None for all

and, where one of its settings is looked at only by `load`, and says how strong it is,

    STRENGTH        the setting's name; `DEFAULTS` then has a field 'sweep' too, a tuple of values that are measured
                    beside the chosen one; open: those of `strengths`, empty: none. Nothing that is fitted depends on
                    it, so it is left out of the settings that the others are given
    strengths(image_size) -> usual values, of use for images of (H, W)
    check_strength(prefix, settings, value)
                    where a fit with some settings does not hold all values: refuses the others

and, where it has got settings that it did not have at first,

    LATER           those, with the values that say what was so before

where `defended(images float [0, 1]) -> probabilities [N, K]` is a pytree, so that it can be handed to a jitted
function, with

    parts()         what was learned and drawn, a nested dict of arrays; its hash is kept
    permutation     the output mapping, int32 [K]; None where the classes stay what they are
    image_size      (H, W)

What it answers to an image depends on the image and on what was kept, never on the batch nor on the call: a defense
that draws at test time takes its keys from `chance.image_keys`.
"""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from refine_jax.datasets.images import Split
from refine_jax.defenses import bit_depth, gaussian_blur, jpeg, refine, shrinkpad
from refine_jax.defenses.bdmae import defense as bdmae
from refine_jax.defenses.blackbox import substitute, zeroth_order
from refine_jax.defenses.bti_dbf import purification, unlearning

DEFENSES: dict[str, ModuleType] = {
    "refine": refine,
    "shrinkpad": shrinkpad,
    "gaussian_blur": gaussian_blur,
    "jpeg": jpeg,
    "bit_depth": bit_depth,
    "bti_dbf_p": purification,
    "bti_dbf_u": unlearning,
    "bdmae": bdmae,
    "refine_substitute": substitute,
    "refine_zeroth_order": zeroth_order,
}

# The field of a defense's settings that says at which strengths it is measured.
SWEEP = "sweep"


def names() -> tuple[str, ...]:
    """Returns the names that config.defense.names takes."""
    return tuple(DEFENSES)


def defaults() -> dict[str, Any]:
    """Returns the section 'defense' of a configuration, but for the names.

    REFINE's settings stand in it, those of the others in a section each.
    """
    return {**refine.DEFAULTS, **{name: module.DEFAULTS for name, module in DEFENSES.items() if name != "refine"}}


def section(name: str) -> str:
    """Returns the dotted name of the section that a defense's settings stand in."""
    return "defense" if name == "refine" else f"defense.{name}"


def settings_of(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a defense's own settings.

    Args:
        name: Of the defense.
        settings: The section 'defense' of a configuration.
    """
    own = settings if name == "refine" else settings[name]
    return {field: own[field] for field in DEFENSES[name].DEFAULTS if field != SWEEP}


def clean_rows(name: str, settings: Mapping[str, Any], labels: np.ndarray, num_classes: int) -> np.ndarray | None:
    """Returns which of the clean images a defense is fitted to.

    Args:
        name: Of the defense.
        settings: The section 'defense' of a configuration.
        labels: Of all clean images. int32 [N]
        num_classes: K.

    Returns:
        Their numbers, in order; None: all.

    Raises:
        SettingError: The defense's settings choose what there is not.
    """
    module = DEFENSES[name]
    if not hasattr(module, "clean_rows"):
        return None
    return module.clean_rows(section(name), settings_of(name, settings), labels, num_classes)


def clean_images(name: str, settings: Mapping[str, Any], train: Split, num_classes: int) -> Split:
    """Returns what a defense is fitted to, labels hidden unless it says that it needs them; arguments as above."""
    rows = clean_rows(name, settings, train.labels, num_classes)
    if rows is not None:
        train = Split(train.images.take(rows, axis=0), train.labels[rows])
    return train if DEFENSES[name].NEEDS.labels else Split.unlabeled(train.images)


def shared_batches(name: str, settings: Mapping[str, Any]) -> dict[str, int]:
    """Returns the batches of a defense's trainings of which each device takes its part, by the fields that say them.

    Args:
        name: Of the defense.
        settings: The section 'defense' of a configuration.
    """
    module, own = DEFENSES[name], settings_of(name, settings)
    if hasattr(module, "shared_batches"):
        sizes = module.shared_batches(own)
    else:
        sizes = {field: own[field] for field in ("batch_size",) if field in own}
    return {f"{section(name)}.{field}": size for field, size in sizes.items()}


def identifying(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a defense's own settings as its outcome is known by; arguments as of `settings_of`."""
    return without_later(settings_of(name, settings)) if name == "refine" else settings_of(name, settings)


def same(name: str, settings: Mapping[str, Any], others: Mapping[str, Any]) -> bool:
    """Returns whether a defense has the same settings of its own in two sections 'defense'.

    Args:
        name: Of the defense.
        settings: The section; perhaps of before some of its fields were there.
        others: Likewise.
    """
    own = []
    for section in (settings, others):
        of = without_later(section if name == "refine" else section.get(name, {}))
        own.append({field: of[field] for field in DEFENSES[name].DEFAULTS if field in of and field != SWEEP})
    return own[0] == own[1]


def without_later(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves out fields that came later where they say what was so before, so that earlier outcomes stay known.

    Args:
        settings: The section 'defense' of a configuration, or REFINE's own of it.
    """
    sections = {
        name: module.LATER for name, module in DEFENSES.items() if name in settings and hasattr(module, "LATER")
    }
    earlier = {name: _without(settings[name], later) for name, later in sections.items()}
    return {**_without(settings, refine.LATER), **earlier}


def _without(settings: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in later or value != later[name]}


def variants(name: str, settings: Mapping[str, Any], image_size: tuple[int, int]) -> dict[str, dict[str, Any]]:
    """Returns at which settings a fitted defense is measured, to see what its strength does; the chosen among them.

    Args:
        name: Of the defense.
        settings: The section 'defense' of a configuration.
        image_size: (H, W).

    Returns:
        Label to the defense's own settings, from the least value to the greatest; {} where nothing is to be varied.
    """
    module, own = DEFENSES[name], settings_of(name, settings)
    if not hasattr(module, "STRENGTH"):
        return {}
    values = settings[name][SWEEP]
    values = module.strengths(image_size) if values is None else values
    if not values:
        return {}
    field = module.STRENGTH
    return {f"{field} {value}": {**own, field: value} for value in sorted({own[field], *values})}
