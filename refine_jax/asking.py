"""Asks a classifier, defended or not, for its answers to images, batch by batch."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
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

    Raises:
        SettingError: It is a plain function, which has no weights to be seen: jax.jit compiles it.
    """
    if jax.tree_util.all_leaves([classifier]):
        name = getattr(classifier, "__qualname__", repr(classifier))
        raise SettingError("classifier", name, "one of this project, defended or not; jax.jit compiles a function")
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
        predict: Float images in [0, 1], RGB [n, H, W, 3] -> scores [n, K]; the largest score is the answer.
        images: Clean. uint8 [N, H, W, 3]; None: it is not asked.
        triggered: uint8 [M, H, W, 3]; None: it is not asked.
        sampled: Of how many images of both kinds the scores are kept at most, where it is asked for both; which ones
            is the rule of `transport.sample`, and where N is M they are the same.
        memory: What it knows of these images is not asked for again.

    Raises:
        RefineError: A score is not a number.
        SettingError: What `predict` gives are no scores.
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


def predict_classes(
    predict: Callable[[jax.Array], jax.Array], images: np.ndarray, batch_size: int = BATCH_SIZE
) -> tuple[np.ndarray, int]:
    """Returns the class that `predict` gives to each image.

    Args:
        predict: As in `answer`.
        images: uint8 [N, H, W, 3]
        batch_size: Of every call; the last batch is filled up, so that a jitted function is compiled once.

    Returns:
        (classes int [N], number of classes).

    Raises:
        RefineError: A score is not a number: the largest of them would mean nothing.
        SettingError: What `predict` gives are no scores.
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
        scores = np.asarray(predict(jnp.asarray(batch, jnp.float32) / 255))
        if scores.ndim != 2 or len(scores) != batch_size:
            raise SettingError("predict", f"what gives {scores.shape} of {batch_size} images", "scores [images, K]")
        scores = scores[:count]
        if np.isnan(scores).any():
            raise RefineError("the classifier's scores are not numbers (NaN): its training has diverged")
        batches.append(scores)
        if memory is not None:
            memory.note(kind, batches)
    return np.concatenate(batches)
