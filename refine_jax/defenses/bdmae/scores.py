"""How suspicious each patch of an image is, from restorations of which random patches were hidden.

    by the image    how little an image is like its restoration there (SSIM): a trigger is not restored
    by the label    how often the classifier says another class once a patch is hidden

Source: Sun et al., section 4.1; the released program, `forward_mae`.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np

from refine_jax.defenses.bdmae.autoencoder import Restorer
from refine_jax.defenses.transformation import apply_operators

# (images float in [0, 1] [N, H, W, 3]) -> classes [N].
Classify = Callable[[jax.Array], jax.Array]

_SIGMA, _RADIUS = 1.5, 5  # of SSIM's window, in pixels
_C1, _C2 = 0.01**2, 0.03**2


def hidden_count(patches: int, mask_ratio: float) -> int:
    """Returns how many of the patches a random mask hides."""
    return int(patches * mask_ratio)


def random_masks(uniforms: jax.Array, count: int) -> jax.Array:
    """Hides `count` patches at a time, taken one after another from random orders of all, each begun after the last.

    So every patch is hidden about equally often. Where one order ends and the next begins a patch may be met twice:
    then fewer are hidden.

    Args:
        uniforms: In [0, 1), that the orders follow from. [..., masks, T]
        count: At most T.

    Returns:
        bool [..., masks, T]
    """
    *_, masks, patches = uniforms.shape
    ranks = jnp.argsort(jnp.argsort(-uniforms, axis=-1), axis=-1)
    numbers = (ranks + patches * jnp.arange(masks)[:, None]) // count  # of the mask that takes it  [..., orders, T]
    return (numbers[..., None, :, :] == jnp.arange(masks)[:, None, None]).any(axis=-2)


def most_visible(patches: int, masks: int, count: int) -> int:
    """Returns the most patches that one of `random_masks` leaves visible."""
    first = np.arange(masks) * count % patches  # in its order, of each mask
    in_one_order = np.minimum(patches - first, count)
    return int(patches - np.maximum(in_one_order, count - in_one_order).min())


def ssim(images: jax.Array, others: jax.Array) -> jax.Array:
    """Structural similarity around each pixel, the mean over the channels; 1 where two images are alike.

    Args:
        images: Float in [0, 1]. [N, H, W, 3]
        others: Likewise.

    Returns:
        [N, H, W]

    References:
        Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", 2004: a Gaussian
        window of 11 x 11, here with images that go on beyond their edges as their outermost pixels.
    """
    chex.assert_equal_shape([images, others])
    from scipy import ndimage  # takes a while to import

    rows, columns = (
        jnp.asarray(ndimage.gaussian_filter1d(np.eye(side), _SIGMA, axis=0, mode="nearest", radius=_RADIUS))
        for side in images.shape[1:3]
    )
    around = lambda x: apply_operators(x, rows, columns)  # noqa: E731
    mean, other_mean = around(images), around(others)
    variance, other_variance = around(images**2) - mean**2, around(others**2) - other_mean**2
    covariance = around(images * others) - mean * other_mean
    brightness = (2 * mean * other_mean + _C1) / (mean**2 + other_mean**2 + _C1)
    structure = (2 * covariance + _C2) / (variance + other_variance + _C2)
    return (brightness * structure).mean(axis=-1)


def score(
    restorer: Restorer, classify: Classify, images: jax.Array, labels: jax.Array, hidden: jax.Array, visible: int
) -> tuple[jax.Array, jax.Array]:
    """Scores the patches of images by restorations.

    Args:
        restorer: Restores them.
        classify: Says what a restoration shows.
        images: Float in [0, 1]. [N, H, W, 3]
        labels: What `classify` says of them. [N]
        hidden: Which patches each restoration hides; after every inner repetition each was hidden once or more. bool
            [outer, inner, N, T]
        visible: The most that one leaves visible.

    Returns:
        (scores by the image: 1 less the SSIM of what was restored so far, the mean over the outer repetitions;
        in how many restorations a patch was hidden and the label another), float and int32 [N, T].
    """
    restore, (_, height, width, _) = restorer.of(images), images.shape

    def inner(carry, hidden):
        total, covered, changes = carry
        restored, where = restore(hidden, visible), restorer.on_pixels(hidden, (height, width))
        changed = classify(restored) != labels
        return (total + restored * where, covered + where, changes + (hidden & changed[:, None])), None

    def outer(carry, hidden):
        state, difference = carry
        state, _ = jax.lax.scan(inner, state, hidden)
        similarity = ssim(images, state[0] / state[1])
        return (state, difference + 1 - restorer.at_patches(similarity)), None

    n, patches = hidden.shape[2:]
    zero = jnp.zeros((n, patches), images.dtype)
    begun = (jnp.zeros_like(images), jnp.zeros_like(images[..., :1]), jnp.zeros((n, patches), jnp.int32))
    ((_, _, changes), difference), _ = jax.lax.scan(outer, (begun, zero), hidden)
    return difference / len(hidden), changes
