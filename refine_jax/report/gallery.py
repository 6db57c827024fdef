"""Test images beside what the attack and each defense make of them, and what was answered."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from refine_jax.asking import Answers

# What a difference is multiplied with, so that it can be seen.
FACTOR = 8
CLASSES, FAILURES = 6, 3


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """An image of the gallery.

    Attributes:
        image: uint8 [H, W, 3]
        answers: (who, class) of each classifier that was shown it.
    """

    image: np.ndarray
    answers: tuple[tuple[str, int], ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
    """A row of the gallery.

    Attributes:
        number: Of the test image.
        label: Its class; None where it is not known.
        failed: Which defenses sent its triggered version to the target or to pi(target).
        ordinary: Which of these answered its clean version wrongly as well.
        cells: Column to image; the columns are those of all rows.
    """

    number: int
    label: int | None
    failed: tuple[str, ...]
    ordinary: tuple[str, ...]
    cells: Mapping[str, Cell | None]


def choose(labels: np.ndarray | None, count: int, target: int | None) -> list[int]:
    """Returns the first image of each of the first classes, the target's left out; without labels, the first images.

    Args:
        labels: Integers [N]; None where they are not known.
        count: N
        target: The attacker's class; None where there is none.
    """
    if labels is None:
        return [*range(min(count, CLASSES))]
    classes = [label for label in np.unique(labels) if label != target][:CLASSES]
    return [int(np.flatnonzero(labels == label)[0]) for label in classes]


def failures(
    labels: np.ndarray | None,
    answers: np.ndarray,
    target: int,
    mapped_target: int | None,
    clean: np.ndarray | None = None,
) -> list[int]:
    """Returns which triggered images, of other classes, were answered with the target or pi(target) wrongly.

    Args:
        labels: Integers [N]; None where they are not known.
        answers: To the triggered images. Integers [N]
        target: The attacker's class.
        mapped_target: pi(target); None without an output mapping.
        clean: Answers to the same images without the trigger; those that were right come first then. Integers [N]
    """
    if labels is None:
        return []
    wrong = (answers == target) | (answers == (target if mapped_target is None else mapped_target))
    found = np.flatnonzero(wrong & (labels != target) & (answers != labels))
    if clean is not None:
        found = found[np.argsort(clean[found] != labels[found], kind="stable")]
    return found.tolist()


def make(
    numbers: Sequence[int],
    clean: np.ndarray | None,
    triggered: np.ndarray | None,
    labels: np.ndarray | None,
    answers: Mapping[str, Answers],
    transforms: Mapping[str, Callable[[np.ndarray], np.ndarray]],
    failed: Mapping[str, Sequence[int]] = {},
) -> list[Example]:
    """Returns the rows of the gallery.

    Args:
        numbers: Of the images, in `clean` and `triggered` alike.
        clean: uint8 [N, H, W, 3]; None: only the triggered ones are known.
        triggered: uint8 [N, H, W, 3]; None where no trigger is known.
        labels: Their classes. Integers [N]; None where they are not known.
        answers: Of the victim alone, first, and behind each defense, by name.
        transforms: Defense to T, uint8 [n, H, W, 3] -> float in [0, 1]; those that have none are not in it.
        failed: Defense to numbers from `failures`.
    """
    chosen = np.asarray(numbers, int)
    kinds = {name: images for name, images in (("clean", clean), ("triggered", triggered)) if images is not None}
    shown = {kind: np.asarray(images[chosen]) for kind, images in kinds.items()}
    made = {
        (name, kind): _to_uint8(transform(images))
        for name, transform in transforms.items()
        for kind, images in shown.items()
    }
    several = len(transforms) > 1
    rows = []
    for i, number in enumerate(numbers):
        cells: dict[str, Cell | None] = {}
        for kind, images in shown.items():
            said = {name: _of(given, kind)[number] for name, given in answers.items() if name not in transforms}
            cells[kind] = Cell(images[i], tuple((name, int(answer)) for name, answer in said.items()))
        if len(shown) == 2:
            change = np.abs(shown["triggered"][i].astype(int) - shown["clean"][i]) * FACTOR
            cells[f"difference x {FACTOR}"] = Cell(np.minimum(change, 255).astype(np.uint8))
        for (name, kind), images in made.items():
            title = f"T({kind})" + (f", {name}" if several else "")
            cells[title] = Cell(images[i], ((name, int(_of(answers[name], kind)[number])),))
        label = None if labels is None else int(labels[number])
        by = tuple(name for name, found in failed.items() if number in found)
        ordinary = tuple(name for name in by if clean is not None and _of(answers[name], "clean")[number] != label)
        rows.append(Example(number, label, by, ordinary, cells))
    return rows


def _of(given: Answers, kind: str) -> Any:
    return given.clean if kind == "clean" else given.triggered


def _to_uint8(images: np.ndarray) -> np.ndarray:
    return np.rint(np.asarray(images) * 255).astype(np.uint8)
