"""What a classifier, defended or not, is worth: BA, ASR, mapped ASR, RA and DER, with counts and intervals."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import chex
import jax
import jax.numpy as jnp
import numpy as np

from refine_jax import transport
from refine_jax.errors import RefineError, SettingError

BATCH_SIZE = 250


def compiled(classifier: Any) -> Callable[[jax.Array], jax.Array]:
    """Compiles a classifier, defended or not; its weights are an argument, so that they are not folded into it.

    They are brought to the device once, not with every batch.
    """
    return functools.partial(_answer, jax.device_put(classifier))


# One function for all, so that classifiers that differ in their arrays alone share a program.
@jax.jit
def _answer(classifier: Any, images: jax.Array) -> jax.Array:
    with jax.default_matmul_precision("float32"):  # which on a GPU is not what is taken for float32 by default
        return classifier(images)


@dataclasses.dataclass(frozen=True, eq=False)
class Answers:
    """The class that a classifier gives to each test image.

    Attributes:
        clean: Of the clean images. Integers [N]; None where it was not asked.
        triggered: Of the triggered ones. Integers [M]; None where it was not asked.
        num_classes: K; None where it was asked nothing.
        clean_scores: Of some of the clean images, see `answer`. float [n, K]; None where they were not kept.
        triggered_scores: Of as many triggered ones. float [n, K]
    """

    clean: np.ndarray | None
    triggered: np.ndarray | None
    num_classes: int | None
    clean_scores: np.ndarray | None = None
    triggered_scores: np.ndarray | None = None


class Memory(Protocol):
    """Remembers what a classifier that takes long has answered, so that one who was cut off goes on from there.

    `kind` is 'clean' or 'triggered'; scores are float [n, K], of the first n images of that kind.
    """

    def recall(self, kind: str) -> np.ndarray | None:
        """Returns the scores that were noted before, None where there are none."""

    def note(self, kind: str, batches: Sequence[np.ndarray]) -> None:
        """Is told the scores of all batches so far, after each."""


def answer(
    predict: Callable[[jax.Array], jax.Array],
    images: np.ndarray | None,
    triggered: np.ndarray | None,
    sampled: int = 0,
    memory: Memory | None = None,
) -> Answers:
    """Asks a classifier for the class of each image.

    Args:
        predict: As in `measure`.
        images: Clean. uint8 [N, H, W, 3]; None: it is not asked.
        triggered: uint8 [M, H, W, 3]; None: it is not asked.
        sampled: Of how many images of both kinds the scores are kept at most, where it is asked for both; which ones
            is the rule of `transport.sample`, and where N is M they are the same.
        memory: What it knows of these images is not asked for again.

    Raises:
        RefineError: A score is not a number.
    """
    found: dict[str, np.ndarray | None] = {}
    num_classes = None
    sampled = 0 if images is None or triggered is None else min(sampled, len(images), len(triggered))
    for name, asked in (("clean", images), ("triggered", triggered)):
        found[name] = None
        if asked is not None:
            chex.assert_rank(asked, 4)
            chex.assert_type(asked, np.uint8)
            rows = transport.sample(len(asked), sampled) if sampled else None
            scores = _ask(predict, asked, BATCH_SIZE, name, memory)
            found[name], num_classes = scores.argmax(axis=1), scores.shape[1]
            found[f"{name}_scores"] = None if rows is None else scores[rows]
    return Answers(**found, num_classes=num_classes)


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
            answers: how many clean images are predicted as each class, [K].
        All are fractions in [0, 1]; None where no image counts, or where what it takes is not known.

    Raises:
        SettingError: The target is no class.
        RefineError: A score is not a number.
    """
    if labels is not None:
        chex.assert_equal_shape_prefix([images, np.asarray(labels)], 1)  # before it takes long
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
        SettingError: The target is no class.
    """
    hits: dict[str, Any] = dict.fromkeys(("ba", "asr", "asr_all", "mapped_asr", "ra"))
    by_class = None
    if labels is not None and answers.clean is not None:
        labels = np.asarray(labels)
        chex.assert_rank(labels, 1)
        chex.assert_equal_shape([answers.clean, labels])
        hits["ba"] = answers.clean == labels
        by_class = np.bincount(answers.clean, minlength=answers.num_classes or 0).tolist()
    if answers.triggered is not None:
        hits |= _triggered_hits(answers.triggered, answers.num_classes or 0, triggered_labels, target, permutation)
    counts = {name: None if hit is None else [int(hit.sum()), len(hit)] for name, hit in hits.items()}
    figures = {name: count[0] / count[1] if count and count[1] else None for name, count in counts.items()}
    intervals = {name: wilson_interval(*count) if count and count[1] else None for name, count in counts.items()}
    return {**figures, "counts": counts, "ci95": intervals, "answers": by_class}


def _triggered_hits(answers, num_classes, labels, target, permutation) -> dict[str, np.ndarray]:
    """Of each figure over triggered images, which of those that count are hits."""
    if not 0 <= target < num_classes:
        raise SettingError("target", target, f"a class, 0 to {num_classes - 1}")
    hits = {"asr_all": answers == target}
    if permutation is not None:
        chex.assert_shape(permutation, (num_classes,))
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


def predict_classes(
    predict: Callable[[jax.Array], jax.Array], images: np.ndarray, batch_size: int = BATCH_SIZE
) -> tuple[np.ndarray, int]:
    """Returns the class that `predict` gives to each image.

    Args:
        predict: As in `measure`.
        images: uint8 [N, H, W, 3]
        batch_size: Of every call; the last batch is filled up, so that a jitted function is compiled once.

    Returns:
        (classes int [N], number of classes).

    Raises:
        RefineError: A score is not a number: the largest of them would mean nothing.
    """
    scores = _ask(predict, images, batch_size)
    return scores.argmax(axis=1), scores.shape[1]


def _ask(predict, images, batch_size: int, kind: str = "", memory: Memory | None = None) -> np.ndarray:
    """Returns the scores of images.  -> [N, K]"""
    batch_size = max(1, min(batch_size, len(images)))
    known = None if memory is None else memory.recall(kind)
    batches = [] if known is None else [known]
    # Without an image, `predict` still tells how many classes there are.
    for start in range(0 if known is None else len(known), max(1, len(images)), batch_size):
        batch = np.asarray(images[start : start + batch_size])
        count = len(batch)
        batch = np.pad(batch, ((0, batch_size - count), (0, 0), (0, 0), (0, 0)))
        scores = np.asarray(predict(jnp.asarray(batch, jnp.float32) / 255))[:count]  # [count, K]
        if np.isnan(scores).any():
            raise RefineError("the classifier's scores are not numbers (NaN): its training has diverged")
        batches.append(scores)
        if memory is not None:
            memory.note(kind, batches)
    return np.concatenate(batches)


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
