"""What a classifier, defended or not, is worth: BA, ASR, mapped ASR, RA and DER, with counts and intervals."""

from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import numpy as np

from refine_jax import transport
from refine_jax.asking import Answers, answer, predict_classes
from refine_jax.asking import compiled as compiled
from refine_jax.errors import SettingError


def measure(
    predict: Callable[[jax.Array], jax.Array],
    images: np.ndarray,
    labels: np.ndarray | None,
    triggered: np.ndarray | None,
    target: int,
    permutation: np.ndarray | None = None,
    triggered_labels: np.ndarray | None = None,
) -> dict[str, Any]:
    """Measures a classifier over a whole test set.

    Args:
        predict: Float images in [0, 1], RGB [n, H, W, 3] -> scores [n, K]; the largest score is the answer.
        images: Clean test images. uint8 [N, H, W, 3]
        labels: Their classes. Integers [N]; None where they are not known.
        triggered: Test images with the trigger. uint8 [M, H, W, 3]; None where no trigger is known.
        target: The attacker's class; not looked at without triggered images.
        permutation: Output mapping, where there is one. Integers [K]
        triggered_labels: True classes of `triggered`, [M]; None: `labels`, so M is N.

    Returns:
        A dict of JSON values:
            ba: clean images predicted as their class;
            asr: triggered images of another class than the target, predicted as the target;
            asr_all: triggered images, predicted as the target;
            mapped_asr: triggered images whose class is neither the target nor permutation[target], predicted as
                permutation[target]; None without a permutation;
            ra: triggered images of another class than the target, predicted as their class;
            counts: of each, [hits, images counted];
            ci95: of each, the Wilson 95 % interval [low, high];
            answers: how many clean images are predicted as each class, [K]; None where they were not asked about.
        All are fractions in [0, 1]; None where no image counts, or where what it takes is not known.

    Raises:
        SettingError: A label or the target is no class, the permutation is none, or `predict` gives no scores.
        RefineError: A score is not a number.
    """
    shown = triggered is not None
    _check(labels, triggered_labels, target, permutation, shown)  # before it takes long
    if labels is not None:
        chex.assert_equal_shape_prefix([images, np.asarray(labels)], 1)
    answers = answer(predict, None if labels is None else images, triggered)
    return count(answers, labels, target, permutation, labels if triggered_labels is None else triggered_labels)


def count(
    answers: Answers,
    labels: np.ndarray | None,
    target: int,
    permutation: np.ndarray | None = None,
    triggered_labels: np.ndarray | None = None,
) -> dict[str, Any]:
    """Counts the figures of `measure` from what was answered.

    Args:
        answers: To the clean and to the triggered images.
        labels: Of the clean images. Integers [N]; None where they are not known.
        target: As in `measure`.
        permutation: As in `measure`.
        triggered_labels: Of the triggered images. Integers [M]; None where they are not known.

    Returns:
        As `measure`.

    Raises:
        SettingError: A label or the target is no class, or the permutation is none.
    """
    shown, num_classes = answers.triggered is not None, answers.num_classes or 0
    _check(labels, triggered_labels, target, permutation, shown, num_classes)
    hits: dict[str, Any] = dict.fromkeys(("ba", "asr", "asr_all", "mapped_asr", "ra"))
    by_class = None
    if answers.clean is not None:
        by_class = np.bincount(answers.clean, minlength=num_classes).tolist()
    if labels is not None and answers.clean is not None:
        labels = np.asarray(labels)
        chex.assert_rank(labels, 1)
        chex.assert_equal_shape([answers.clean, labels])
        hits["ba"] = answers.clean == labels
    if answers.triggered is not None:
        hits |= _triggered_hits(answers.triggered, triggered_labels, target, permutation)
    counts = {name: None if hit is None else [int(hit.sum()), len(hit)] for name, hit in hits.items()}
    figures = {name: count[0] / count[1] if count and count[1] else None for name, count in counts.items()}
    intervals = {name: wilson_interval(*count) if count and count[1] else None for name, count in counts.items()}
    return {**figures, "counts": counts, "ci95": intervals, "answers": by_class}


def _check(labels, triggered_labels, target, permutation, triggered: bool, num_classes: int | None = None) -> None:
    """Refuses what would count for nothing, and so make a figure look perfect; K may not be known yet.

    Target and permutation are not looked at without triggered images.
    """
    if triggered and target is None:
        raise SettingError("target", None, "the attacker's class, as there are triggered images")
    if not triggered:
        target = permutation = None
    allowed = "a class, 0 to " + ("the number of classes less 1" if num_classes is None else f"{num_classes - 1}")
    for name, given in (("labels", labels), ("triggered_labels", triggered_labels), ("target", target)):
        classes = np.asarray([] if given is None else given)
        if classes.size and classes.dtype.kind not in "iu":
            raise SettingError(name, given if name == "target" else f"of type {classes.dtype}", allowed)
        wrong = classes[(classes < 0) | (num_classes is not None and classes >= (num_classes or 0))]
        if wrong.size:
            raise SettingError(name, int(wrong.flat[0]), allowed)
    if permutation is not None and num_classes is not None:
        chex.assert_shape(np.asarray(permutation), (num_classes,))
        if sorted(np.asarray(permutation).tolist()) != list(range(num_classes)):
            shown = np.asarray(permutation).tolist()
            raise SettingError("permutation", shown, f"each of 0 to {num_classes - 1}, once")


def _triggered_hits(answers, labels, target, permutation) -> dict[str, np.ndarray]:
    """Of each figure over triggered images, which of those that count are hits."""
    hits = {"asr_all": answers == target}
    if labels is None:
        return hits
    labels = np.asarray(labels)
    chex.assert_rank(labels, 1)
    chex.assert_equal_shape([answers, labels])
    others = labels != target
    hits |= {"asr": (answers == target)[others], "ra": (answers == labels)[others]}
    if permutation is not None:
        mapped_target = np.asarray(permutation)[target]
        hits["mapped_asr"] = (answers == mapped_target)[others & (labels != mapped_target)]
    return hits


def benign_accuracy(
    predict: Callable[[jax.Array], jax.Array], images: np.ndarray, labels: np.ndarray
) -> dict[str, Any]:
    """Measures a classifier on clean images alone.

    Args:
        predict: As in `measure`.
        images: uint8 [N, H, W, 3], one or more.
        labels: Integers [N]

    Returns:
        'ba', 'counts' and 'ci95', as in `measure`.
    """
    answers, _ = predict_classes(predict, images)
    hits = int((answers == labels).sum())
    return {
        "ba": hits / len(labels),
        "counts": {"ba": [hits, len(labels)]},
        "ci95": {"ba": wilson_interval(hits, len(labels))},
    }


def agreement(answers: Answers, others: Answers) -> tuple[float, list[int], list[float]]:
    """Counts the clean images to which two classifiers give the same class; for images without labels.

    Args:
        answers: Of one, to one image or more.
        others: Of the other, to the same images.

    Returns:
        (share, [hits, images], the Wilson 95 % interval).
    """
    same = np.asarray(answers.clean) == np.asarray(others.clean)  # [N]
    return float(same.mean()), [int(same.sum()), len(same)], wilson_interval(int(same.sum()), len(same))


def output_distance(answers: Answers, *, logits: bool) -> tuple[float | None, int | None]:
    """Returns how far the outputs on triggered images are from those on clean ones, as distributions.

    Args:
        answers: With scores.
        logits: Whether the scores are logits, of which the outputs are the softmax; else they are probabilities.

    Returns:
        (Wasserstein-1 distance between the outputs' empirical distributions, 0 to sqrt(2), images of each kind); None,
        None where no scores were kept.

    References:
        Chen et al., REFINE, ICLR 2025, whose theory speaks of the Wasserstein-1 distance between output
        representations. Which representation, and the Euclidean distance between two, are chosen here.
    """
    if answers.clean_scores is None or answers.triggered_scores is None:
        return None, None
    outputs = [answers.clean_scores.astype(np.float64), answers.triggered_scores.astype(np.float64)]
    if logits:
        from scipy.special import softmax

        outputs = [softmax(scores, axis=1) for scores in outputs]
    return transport.wasserstein_1(*outputs), len(answers.clean_scores)


def wilson_interval(hits: int, total: int) -> list[float]:
    """Returns the Wilson score interval, at 95 %, of a share of `hits` in `total`: [low, high]."""
    from scipy.stats import binomtest  # costs a second to import

    interval = binomtest(hits, total).proportion_ci(0.95, "wilson")
    return [float(interval.low), float(interval.high)]


def defense_effectiveness(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[float | None, list | None]:
    """Defense effectiveness (DER) of what `measure` gave before and after a defense.

    (max(0, ASR before - after) - max(0, BA before - after) + 1) / 2, in [0, 1]: 1 where an attack that always
    succeeded is gone and no accuracy with it.

    Args:
        before: Without the defense.
        after: With it.

    Returns:
        (der, its 95 % interval [low, high]). The interval puts the Wilson intervals of the four shares together
        by the method of variance estimates recovery (Zou and Donner, 2008), as if they were independent; they
        are of the same images, so it is rather too wide. None, None where an ASR or BA is None.
    """
    shares = [(before, "asr", 1), (after, "asr", -1), (before, "ba", -1), (after, "ba", 1)]
    if any(figures[name] is None for figures, name, _ in shares):
        return None, None
    asr_drop, ba_drop = before["asr"] - after["asr"], before["ba"] - after["ba"]
    der = (max(0.0, asr_drop) - max(0.0, ba_drop) + 1) / 2
    down = up = 0.0
    for figures, name, sign in shares:
        below = figures[name] - figures["ci95"][name][0]
        above = figures["ci95"][name][1] - figures[name]
        down += (below if sign > 0 else above) ** 2
        up += (above if sign > 0 else below) ** 2
    return der, [max(0.0, der - down**0.5 / 2), min(1.0, der + up**0.5 / 2)]
