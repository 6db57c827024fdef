"""REFINE in one call, for a classifier and images at hand."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import chex
import jax
import numpy as np

from refine_jax import function_classifier
from refine_jax.classifier import Classifier
from refine_jax.datasets.images import Split
from refine_jax.defenses import refine, refine_seeds
from refine_jax.errors import SettingError, choose
from refine_jax.training.parallel import PRECISIONS, Execution, default_precision


def defend(
    classifier: Classifier | Callable[..., jax.Array],
    images: np.ndarray,
    settings: Mapping[str, Any] | None = None,
    *,
    num_classes: int | None = None,
    variables: Mapping[str, Any] | None = None,
    precision: str | None = None,
    seed: int = 0,
) -> refine.Defended:
    """Defends a classifier with REFINE.

    Args:
        classifier: Stays as it is; its weights are never changed. A `Classifier`, or any JAX function in inference
            mode: float images in [0, 1], RGB [N, H, W, 3] -> logits [N, K].
        images: Clean, without labels, RGB. uint8 [N, H, W, 3]
        settings: A mapping or ConfigDict with some of the fields of `refine.DEFAULTS`; None for the paper's.
        num_classes: K; None: the classifier's.
        variables: With a function that is called as function(variables, images): nested dicts of arrays. A function
            that has its weights in itself needs none, but is compiled with them as constants, which takes longer.
        precision: 'float32' or 'bfloat16', the type in which networks compute while the U-Net is trained; None:
            bfloat16 for a `Classifier` on a GPU, otherwise float32. With a function, which computes in types of its
            own, only float32.
        seed: For everything that is drawn.

    Returns:
        `defended(images float [0, 1])` gives probabilities [N, K]; see `refine.Defended`.

    Raises:
        SettingError: A setting is unknown or impossible, or the function is no such classifier.
    """
    victim, clean, settings, num_classes = _check(classifier, images, settings, num_classes, variables)
    execution = _execution(victim, precision)
    return refine.fit(victim, clean, settings, seed, num_classes, execution=execution).defended


def defend_seeds(
    classifier: Classifier | Callable[..., jax.Array],
    images: np.ndarray,
    settings: Mapping[str, Any] | None = None,
    *,
    seeds: Sequence[int],
    num_classes: int | None = None,
    variables: Mapping[str, Any] | None = None,
    precision: str | None = None,
) -> list[refine.Defended]:
    """Defends a classifier with REFINE once with each seed, in one program (`refine_seeds`).

    Args:
        classifier: As in `defend`.
        images: Likewise.
        settings: Likewise.
        seeds: Each for everything that is drawn for one of the defenses.
        num_classes: As in `defend`.
        variables: Likewise.
        precision: Likewise.

    Returns:
        What `defend` gives with each seed, up to rounding.

    Raises:
        SettingError: As `defend`; or a seed is there twice.
    """
    victim, clean, settings, num_classes = _check(classifier, images, settings, num_classes, variables)
    execution = _execution(victim, precision)
    all_fitted = refine_seeds.fit_seeds(victim, clean, settings, seeds, num_classes, execution=execution)
    return [fitted.defended for fitted in all_fitted]


def _check(classifier, images, settings, num_classes, variables) -> tuple[Any, Split, dict[str, Any], int]:
    """Returns classifier, images, whole settings and K, of what `defend` was given; refuses what cannot be."""
    if isinstance(classifier, Classifier) and num_classes not in (None, classifier.num_classes):
        raise SettingError("num_classes", num_classes, f"{classifier.num_classes}, as the classifier has so many")
    images = np.asarray(images)
    chex.assert_shape(images, (None, None, None, 3))
    chex.assert_type(images, np.uint8)
    settings = refine.complete(settings)
    refine.check("defense", settings, len(images), images.shape[1:3])
    clean = Split.unlabeled(images)
    refine.clean_rows("defense", settings, clean.labels, num_classes or 0)  # labels that there are not
    victim: Any = classifier
    if not isinstance(classifier, Classifier):
        height, width = images.shape[1:3]
        victim = function_classifier.wrap(classifier, (height, width), num_classes, variables)
    elif variables is not None:
        raise SettingError("variables", "given", "nothing with a Classifier, which has its own")
    return victim, clean, settings, num_classes or victim.num_classes


def _execution(victim: Any, precision: str | None) -> Execution:
    """Returns how the training is run: on one device, as suits it."""
    if not isinstance(victim, Classifier):
        if precision not in (None, "float32"):
            raise SettingError("precision", precision, "float32 with a function, which computes in its own types")
        precision = "float32"
    elif precision is not None:
        choose("precision", precision, PRECISIONS)
    return Execution(steps_per_call=None, precision=precision or default_precision())
