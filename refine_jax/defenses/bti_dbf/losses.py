"""What the parts of BTI-DBF are trained for, as functions of features, logits and images.

The 'features' of an image are the last feature map of the classifier; its 'head' takes them to the logits. A mask
tells benign features (1) from the others (0). Inputs are images as the network takes them, preprocessed, and so are
the bounds on their mean squared differences.

Source: Xu et al., Towards Reliable and Efficient Backdoor Trigger Inversion via Decoupling Benign Features, ICLR
    2024, section 3, and its released program, whose weights and conditions these are.
"""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import optax

from refine_jax import mapped

# Above this, reconstruction weighs the distance of the images 100 times, else 0.01 times.
RECONSTRUCTION_BOUND = 0.1


def feature_mask(free: jax.Array) -> jax.Array:
    """Returns a mask within (0, 1) of unbounded numbers of the same shape."""
    return jnp.tanh(free) / (2 + 1e-7) + 0.5


def squared_difference(a: jax.Array, b: jax.Array) -> jax.Array:
    """The mean over all elements of (a - b)^2.  Scalar."""
    chex.assert_equal_shape([a, b])
    return jnp.square(a - b).mean()


def classification(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross-entropy of logits [N, K] against labels [N], the mean in nats.  Scalar."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def decoupling(kept: jax.Array, rest: jax.Array, labels: jax.Array) -> jax.Array:
    """What the mask is trained for: the features that it keeps tell the class, the others do not.

    Args:
        kept: Logits of mask * features. [N, K]
        rest: Logits of (1 - mask) * features. [N, K]
        labels: True classes. Integers [N]

    Returns:
        Cross-entropy of the first minus that of the second; it has no lower bound. Scalar.
    """
    return classification(kept, labels) - classification(rest, labels)


def inversion(
    features: Sequence[jax.Array],
    inputs: Sequence[jax.Array],
    mask: jax.Array,
    norm_bound: float,
    feature_bound: float,
    axis_name: str | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """What the trigger generator is trained for: other features change as much as they can, benign ones stay.

    Where the changed images are too far from the clean ones, or their benign features are, the images are drawn back
    and nothing else is asked for.

    Args:
        features: Of clean and of changed images. Each [N, ...]
        inputs: The images themselves, preprocessed. Each [N, H, W, 3]
        mask: From `feature_mask`. [...]
        norm_bound: Of the mean squared difference of the images.
        feature_bound: Of that of their benign features.
        axis_name: Mapped axis over which the batch is split: the bounds are on the whole.

    Returns:
        (loss, its parts: 'benign', 'backdoor' and 'norm'), scalars.
    """
    clean, changed = features
    benign = squared_difference(mask * clean, mask * changed)
    backdoor = squared_difference((1 - mask) * clean, (1 - mask) * changed)
    norm = squared_difference(*inputs)
    outside = _exceeds(norm, norm_bound, axis_name) | _exceeds(benign, feature_bound, axis_name)
    loss = jnp.where(outside, norm, -backdoor + 0.01 * benign)
    return loss, {"benign": benign, "backdoor": backdoor, "norm": norm}


def reconstruction(
    features: Sequence[jax.Array],
    inputs: Sequence[jax.Array],
    logits: Sequence[jax.Array],
    axis_name: str | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """What the generator is trained for at first: to give back what it is shown.

    Args:
        features: As in `inversion`, here of clean and of reconstructed images.
        inputs: Likewise.
        logits: Likewise. Each [N, K]
        axis_name: Likewise.

    Returns:
        (loss, its parts: 'classification', 'feature' and 'norm'), scalars. The cross-entropy is, as in the released
        program, of the clean image's probabilities, which it takes for logits, against those of the reconstruction.
    """
    clean, changed = (jax.nn.softmax(rows) for rows in logits)
    predicted = optax.softmax_cross_entropy(clean, changed).mean()
    feature, norm = squared_difference(*features), squared_difference(*inputs)
    weight = jnp.where(_exceeds(norm, RECONSTRUCTION_BOUND, axis_name), 100.0, 0.01)
    return predicted + feature + weight * norm, {"classification": predicted, "feature": feature, "norm": norm}


def purification(
    features: Sequence[jax.Array],
    inputs: Sequence[jax.Array],
    logits: jax.Array,
    labels: jax.Array,
    norm_bound: float,
    axis_name: str | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """What the purifier is trained for: what it makes of an image, triggered or not, is the clean image.

    Args:
        features: As in `inversion`, here of clean and of purified images.
        inputs: Likewise.
        logits: Of purified images. [N, K]
        labels: True classes. Integers [N]
        norm_bound: Above this mean squared difference, the images' distance weighs 100 times.
        axis_name: As in `inversion`.

    Returns:
        (loss, its parts: 'classification', 'feature' and 'norm'), scalars.
    """
    predicted = classification(logits, labels)
    feature, norm = squared_difference(*features), squared_difference(*inputs)
    weight = jnp.where(_exceeds(norm, norm_bound, axis_name), 100.0, 1.0)
    return predicted + feature + weight * norm, {"classification": predicted, "feature": feature, "norm": norm}


def unlearning(
    features: Sequence[jax.Array], logits: jax.Array, labels: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """What the classifier is trained for: a triggered image has its true class, and the features of the clean one.

    Args:
        features: Of clean images, and of the same some of which are triggered. Each [N, ...]
        logits: Of the latter. [N, K]
        labels: True classes. Integers [N]

    Returns:
        (loss, its parts: 'classification' and 'feature'), scalars.
    """
    predicted, feature = classification(logits, labels), squared_difference(*features)
    return predicted + feature, {"classification": predicted, "feature": feature}


def _exceeds(value: jax.Array, bound: float, axis_name: str | None) -> jax.Array:
    return mapped.average(jax.lax.stop_gradient(value), axis_name) > bound
