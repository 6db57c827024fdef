"""The defenses, by name.

A defense is a module with

    check(prefix, settings, num_images, image_size)         refuses impossible settings before any work
    fit(classifier, images, settings, seed, num_classes, journal) -> (defended, outcome)
    load(checkpoints, classifier, settings, image_size) -> defended     of a training that came to its end

where `defended(images float [0, 1]) -> probabilities [N, K]` is a pytree with a `permutation`.
"""

from types import ModuleType

from refine_jax.defenses import refine

DEFENSES: dict[str, ModuleType] = {"refine": refine}


def names() -> tuple[str, ...]:
    """Returns the names that config.defense.names takes."""
    return tuple(DEFENSES)
