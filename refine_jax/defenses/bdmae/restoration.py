"""What is suspicious of an image is restored, by several thresholds, and the mean of that is shown to the classifier.

Source: Sun et al., section 4.3; the released program, `forward_mae`.
"""

from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from refine_jax.defenses.bdmae import scores as scoring
from refine_jax.defenses.bdmae import topology
from refine_jax.defenses.bdmae.autoencoder import Restorer
from refine_jax.defenses.bdmae.settings import Search
from refine_jax.defenses.chance import image_keys
from refine_jax.keys import named_key

# Thresholds rise in steps by which what lies below 1 shrinks, as often as this at most: the published lowest to 0.92.
# Refined scores can pass 1, and of an image with many such scores more is restored than was asked for.
_SHRINK, _SHRUNK = 0.99, 200


class Draws(Protocol):
    """The chance that images meet, each its own."""

    def masks(self, search: Search, patches: int) -> jax.Array:
        """Returns uniform numbers for `scores.random_masks`.  [N, outer, inner, T]"""

    def local(self, kind: jax.Array, refinement: jax.Array, number: jax.Array | int, patches: int) -> jax.Array:
        """Returns uniform numbers for `topology.sample`, of the scores by image (kind 0) or label (1).  [N, T]"""


class ImageDraws:
    """Draws of what each image shows, under a key.

    Args:
        key: Of the defense.
        images: Float in [0, 1]. [N, H, W, 3]
    """

    def __init__(self, key: jax.Array, images: jax.Array):
        self._keys = image_keys(key, images)

    def masks(self, search: Search, patches: int) -> jax.Array:
        """As in `Draws`."""
        shape = (search.outer_repeats, search.inner_repeats, patches)
        return jax.vmap(lambda key: jax.random.uniform(named_key(key, "masks"), shape))(self._keys)

    def local(self, kind: jax.Array, refinement: jax.Array, number: jax.Array | int, patches: int) -> jax.Array:
        """As in `Draws`."""
        names = ("local", kind, refinement, number)
        return jax.vmap(lambda key: jax.random.uniform(named_key(key, *names), (patches,)))(self._keys)


def purify(restorer: Restorer, classifier: Any, images: jax.Array, draws: Draws, search: Search) -> jax.Array:
    """Returns images of which what a trigger may be is restored.

    Args:
        restorer: Restores them.
        classifier: Of which only the answers are looked at.
        images: Float in [0, 1]. [N, H, W, 3]
        draws: What is drawn.
        search: How a trigger is looked for.

    Returns:
        Of the same shape.
    """
    classify = lambda images: classifier(images).argmax(axis=-1)  # noqa: E731
    labels = classify(images)  # [N]
    scores = suspicion(restorer, classify, images, labels, draws, search)
    return restore_suspicious(restorer, images, scores, search)


def suspicion(
    restorer: Restorer, classify: scoring.Classify, images: jax.Array, labels: jax.Array, draws: Draws, search: Search
) -> jax.Array:
    """Returns how suspicious the patches of images are, by image and label, refined.

    Args:
        restorer: As in `purify`.
        classify: Says what images show.
        images: As in `purify`.
        labels: What it says of them. [N]
        draws: As in `purify`.
        search: As in `purify`.

    Returns:
        [N, T]
    """
    patches, repeats = restorer.patches, search.outer_repeats * search.inner_repeats
    count = scoring.hidden_count(patches, search.mask_ratio)
    hidden = jnp.moveaxis(scoring.random_masks(draws.masks(search, patches), count), 0, 2)  # [outer, inner, N, T]
    visible = scoring.most_visible(patches, search.inner_repeats, count)
    by_image, changes = scoring.score(restorer, classify, images, labels, hidden, visible)
    by_label = changes.astype(by_image.dtype) / repeats
    # As many as are above a score, and as many as the scores add up to.
    counts = jnp.stack([(by_image >= search.refined_score).sum(axis=-1), changes.sum(axis=-1) // repeats])
    restore, touching = restorer.of(images), jnp.asarray(topology.neighbors(restorer.grid))

    def refined(given):
        kind, scores, count = given
        return topology.refine(
            scores,
            count,
            restore,
            classify,
            labels,
            lambda refinement, number: draws.local(kind, refinement, number, patches),
            touching,
            refinements=search.refinements,
            refinement_step=search.refinement_step,
            neighbor_weight=search.neighbor_weight,
        )

    # One after the other, in a loop: half as much to compile.
    by_image, by_label = jax.lax.map(refined, (jnp.arange(2), jnp.stack([by_image, by_label]), counts))
    return search.alpha * by_image + (1 - search.alpha) * by_label


def thresholds(scores: jax.Array, search: Search) -> jax.Array:
    """Returns the thresholds of each image: raised, together, until the lowest leaves most of the image as it is.

    Args:
        scores: [N, T]
        search: Its `thresholds`, and the `restored_share` that stays unreached.

    Returns:
        [N, thresholds], falling.
    """
    shrinking = _SHRINK ** np.arange(_SHRUNK + 1)
    lowest = jnp.asarray(1 - (1 - min(search.thresholds)) * shrinking, scores.dtype)  # [steps]
    shares = jax.vmap(lambda row: (row >= lowest[:, None]).mean(axis=-1))(scores)  # [N, steps]
    few = (shares < search.restored_share).at[:, -1].set(True)
    steps = few.argmax(axis=-1)  # the first
    below = 1 - np.asarray(search.thresholds)
    return 1 - jnp.asarray(shrinking, scores.dtype)[steps][:, None] * jnp.asarray(below, scores.dtype)


def restore_suspicious(restorer: Restorer, images: jax.Array, scores: jax.Array, search: Search) -> jax.Array:
    """Restores what is suspicious of images by each threshold; where more than one does, the mean of that stands.

    Args:
        restorer: As in `purify`.
        images: As in `purify`.
        scores: [N, T]
        search: As in `purify`.

    Returns:
        [N, H, W, 3]
    """
    restore, (_, height, width, _) = restorer.of(images), images.shape
    hidden = jnp.moveaxis(scores[:, None] >= thresholds(scores, search)[..., None], 0, 1)  # [thresholds, N, T]

    def add(carry, hidden):
        total, covered = carry
        where = restorer.on_pixels(hidden, (height, width))
        return (total + restore(hidden) * where, covered + where), None

    begun = (jnp.zeros_like(images), jnp.zeros_like(images[..., :1]))
    (total, covered), _ = jax.lax.scan(add, begun, hidden)
    return jnp.where(covered > 0, total / jnp.maximum(covered, 1), images)
