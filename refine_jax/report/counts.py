"""What the answers to test images come to, class by class."""

from typing import Any

import chex
import numpy as np

from refine_jax.evaluation import wilson_interval

# Where a triggered image goes; the first that fits.
RIGHT, TARGET, MAPPED, ELSEWHERE = DESTINATIONS = ("its class", "the target", "pi(target)", "elsewhere")


def confusion(labels: np.ndarray, answers: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts images by their class and by the class that was answered.

    Args:
        labels: True classes. Integers [N]
        answers: Integers [N]
        num_classes: K

    Returns:
        Integers [K, K]: a row for each true class, a column for each answer.
    """
    chex.assert_equal_shape([labels, answers])
    flat = np.bincount(labels * num_classes + answers, minlength=num_classes**2)
    return flat.reshape(num_classes, num_classes)


def class_accuracies(confused: np.ndarray) -> list[dict[str, Any] | None]:
    """Returns of each class the share of its images that were answered with it.

    Args:
        confused: From `confusion`. [K, K]

    Returns:
        'share', 'count' ([hits, images]) and 'ci95', the Wilson interval [low, high]; None of a class without images.
    """
    found: list[dict[str, Any] | None] = []
    for hits, total in zip(np.diag(confused).tolist(), confused.sum(axis=1).tolist(), strict=True):
        known = (
            {"share": hits / total, "count": [hits, total], "ci95": wilson_interval(hits, total)} if total else None
        )
        found.append(known)
    return found


def largest_confusions(confused: np.ndarray, most: int = 5) -> list[tuple[int, int, int]]:
    """Returns the most frequent errors as (true class, answer, images), the most frequent first."""
    errors = confused * (1 - np.eye(len(confused), dtype=int))
    order = np.argsort(-errors, axis=None, kind="stable")[:most]
    pairs = [tuple(map(int, np.unravel_index(flat, errors.shape))) for flat in order]
    return [(true, answer, int(errors[true, answer])) for true, answer in pairs if errors[true, answer]]


def mapped_target(permutation: Any, target: int | None) -> int | None:
    """Returns pi(target); None without an output mapping, or where the target stays what it is.

    There is one place then where a trigger can land, and what is answered with the target is not to be counted again.

    Args:
        permutation: Output mapping. Integers [K]; None where there is none.
        target: The attacker's class; None where no trigger is known.
    """
    mapped = None if permutation is None or target is None else int(np.asarray(permutation)[target])
    return None if mapped == target else mapped


def destinations(
    labels: np.ndarray, answers: np.ndarray, target: int, mapped_target: int | None, num_classes: int
) -> np.ndarray:
    """Counts where triggered images went; those of the target's class are left out.

    An image of the class pi(target) that is answered with it went to its class.

    Args:
        labels: True classes. Integers [M]
        answers: Integers [M]
        target: The attacker's class.
        mapped_target: From `mapped_target`.
        num_classes: K

    Returns:
        Integers [K, 4]: a row for each true class, that of the target zeros; columns as `DESTINATIONS`. The sum of
        the first is the hits of RA, that of the second those of ASR.
    """
    chex.assert_equal_shape([labels, answers])
    where = np.full(len(labels), DESTINATIONS.index(ELSEWHERE))
    if mapped_target is not None:
        where[answers == mapped_target] = DESTINATIONS.index(MAPPED)
    where[answers == target] = DESTINATIONS.index(TARGET)
    where[answers == labels] = DESTINATIONS.index(RIGHT)
    counted = labels != target
    flat = np.bincount(labels[counted] * 4 + where[counted], minlength=4 * num_classes)
    return flat.reshape(num_classes, 4)
