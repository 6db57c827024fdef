"""REFINE in one call, for a classifier and images at hand."""

from collections.abc import Mapping
from typing import Any

import chex
import numpy as np

from refine_jax.classifier import Classifier
from refine_jax.defenses import refine


def defend(
    classifier: Classifier,
    images: np.ndarray,
    settings: Mapping[str, Any] | None = None,
    *,
    num_classes: int | None = None,
    seed: int = 0,
) -> refine.Defended:
    """Defends a classifier with REFINE.

    Args:
        classifier: Stays as it is; its weights are never changed.
        images: Clean, without labels, RGB. uint8 [N, H, W, 3]
        settings: A mapping or ConfigDict with some of the fields of `refine.DEFAULTS`; None for the paper's.
        num_classes: K; None: the classifier's.
        seed: For everything that is drawn.

    Returns:
        `defended(images float [0, 1])` gives probabilities [N, K]; see `refine.Defended`.

    Raises:
        SettingError: A setting is unknown or impossible.
    """
    images = np.asarray(images)
    chex.assert_shape(images, (None, None, None, 3))
    chex.assert_type(images, np.uint8)
    settings = refine.complete(settings)
    refine.check("defense", settings, len(images), images.shape[1:3])
    defended, _ = refine.fit(classifier, images, settings, seed, num_classes or classifier.num_classes)
    return defended
