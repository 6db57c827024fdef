"""Everything that a report shows of a run, as plain values and arrays; nothing is drawn yet."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from refine_jax.asking import Answers
from refine_jax.batches import map_batches
from refine_jax.report import counts, gallery, projection
from refine_jax.report.projection import Projection

NO_DEFENSE = "no defense"


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """The test images of a run.

    Attributes:
        clean: uint8 [N, H, W, 3]
        labels: Their classes. Integers [N]; None where they are not known.
        triggered: uint8 [M, H, W, 3]; None where no trigger is known.
        triggered_labels: Their classes. Integers [M]; None where they are not known.
        aligned: Whether triggered image i was made of clean image i.
        target: The attacker's class; None where no trigger is known.
        class_names: [K]
    """

    clean: np.ndarray
    labels: np.ndarray | None
    triggered: np.ndarray | None
    triggered_labels: np.ndarray | None
    aligned: bool
    target: int | None
    class_names: Sequence[str]


@dataclasses.dataclass(frozen=True, eq=False)
class Shown:
    """A classifier of the report: the victim alone, or behind a defense.

    Attributes:
        name: `NO_DEFENSE`, or that of the defense.
        figures: As in results.json.
        mapped_target: From `counts.mapped_target`.
        confusion: From `counts.confusion`; None where the classes are not known.
        destinations: From `counts.destinations`; likewise.
        projection: Of the victim's features, of T(x) behind a defense; None where there are none.
    """

    name: str
    figures: Mapping[str, Any]
    mapped_target: int | None
    confusion: np.ndarray | None
    destinations: np.ndarray | None
    projection: Projection | None


@dataclasses.dataclass(frozen=True, eq=False)
class Material:
    """What a report is made of.

    Attributes:
        results: As the file holds it.
        images: Of the run.
        classifiers: The victim alone first.
        examples: Rows of the gallery.
        curves: From `curves.read`.
        benign_places: Classes of the images whose features are projected, [n]; None where they are not known.
        contact_sheet: What the attack does, as a PNG; None where the attack was not planted here.
    """

    results: Mapping[str, Any]
    images: Images
    classifiers: Sequence[Shown]
    examples: Sequence[gallery.Example]
    curves: Mapping[str, Mapping[str, np.ndarray]]
    benign_places: np.ndarray | None
    contact_sheet: bytes | None


def gather(
    results: Mapping[str, Any],
    images: Images,
    classifier: Any,
    defended: Mapping[str, Any],
    answers: Mapping[str, Answers],
    curves: Mapping[str, Mapping[str, np.ndarray]],
    contact_sheet: bytes | None,
) -> Material:
    """Works out what a report shows.

    Args:
        results: As results.json holds it.
        images: Of the run.
        classifier: The victim.
        defended: Defense to what it was fitted to; those with `transform` have transformed images.
        answers: Of the victim, under `NO_DEFENSE`, and of each defense.
        curves: From `curves.read`.
        contact_sheet: A PNG, or None.
    """
    sampled, triggered = _sample(images.clean), images.triggered
    shown_triggered = None if triggered is None else _sample(triggered)
    classifiers, failed = [], {}
    for name, given in answers.items():
        behind = defended.get(name)
        mapped = counts.mapped_target(None if behind is None else behind.permutation, images.target)
        figures = results["no_defense"] if name == NO_DEFENSE else results["defenses"][name]
        counted = _count(images, given, mapped)
        features = None
        if name == NO_DEFENSE or hasattr(behind, "transform"):
            features = projection.feature_function(classifier, behind)
        projected = None
        if features is not None:
            benign = features(sampled)
            projected = projection.project(benign, None if shown_triggered is None else features(shown_triggered))
        classifiers.append(Shown(name, figures, mapped, *counted, projected))
        if behind is not None and images.target is not None and given.triggered is not None:
            clean = given.clean if images.aligned else None
            failed[name] = gallery.failures(images.triggered_labels, given.triggered, images.target, mapped, clean)
    labels = images.labels
    places = None if labels is None else labels[projection.evenly(len(labels))]
    examples = _examples(images, answers, defended, failed)
    return Material(results, images, classifiers, examples, curves, places, contact_sheet)


def _sample(images: np.ndarray) -> np.ndarray:
    return np.asarray(images[projection.evenly(len(images))])


def _count(images: Images, given: Answers, mapped: int | None) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Confusion and destinations, each where what it takes is known."""
    num_classes = len(images.class_names)
    confusion = destinations = None
    if images.labels is not None and given.clean is not None:
        confusion = counts.confusion(images.labels, given.clean, num_classes)
    if images.triggered_labels is not None and given.triggered is not None and images.target is not None:
        labels = images.triggered_labels
        destinations = counts.destinations(labels, given.triggered, images.target, mapped, num_classes)
    return confusion, destinations


def _examples(
    images: Images, answers: Mapping[str, Answers], defended: Mapping[str, Any], failed: Mapping[str, Sequence[int]]
) -> list[gallery.Example]:
    """Rows of the gallery: the first of some classes, and then the first images that a defense failed on."""
    together = images.triggered is None or images.aligned
    labels = images.labels if together else images.triggered_labels
    count = len(images.clean) if together or images.triggered is None else len(images.triggered)
    chosen = gallery.choose(labels, count, images.target)
    worst = sorted({number for found in failed.values() for number in found[: gallery.FAILURES]} - {*chosen})
    transforms = {name: _transform(behind) for name, behind in defended.items() if hasattr(behind, "transform")}
    clean = images.clean if together else None
    return gallery.make([*chosen, *worst], clean, images.triggered, labels, answers, transforms, failed)


def _transform(defended: Any):
    """T as a function of uint8 images on the host."""
    compiled = jax.jit(lambda defended, images: defended.transform(images.astype(jnp.float32) / 255))
    return lambda images: map_batches(lambda batch: compiled(defended, batch), images)
