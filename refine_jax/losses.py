"""The losses of REFINE: cross-entropy through the output mapping, and supervised contrastive loss."""

import math

import chex
import jax
import jax.numpy as jnp
import optax

from refine_jax import mapped

# torch.nn.BCELoss keeps logarithms from going below the one, and in its gradient q * (1 - q) below the other.
_LOG_FLOOR = -100.0
_VARIANCE_FLOOR = 1e-12


def mapped_cross_entropy(logits: jax.Array, labels: jax.Array, permutation: jax.Array) -> jax.Array:
    """Cross-entropy of the remapped probabilities against labels: the mean of -log p[pi^-1(y)].

    Args:
        logits: The classifier's, before the mapping. [N, K]
        labels: Class of each image, in the order that the mapping leads to. Integers [N]
        permutation: Output mapping: the classifier's class i becomes class permutation[i]. Integers [K]

    Returns:
        The mean over the batch, in nats. Scalar.

    References:
        Chen et al., REFINE, ICLR 2025, section 4.3 (the loss that the paper states).
    """
    _check(logits, labels, permutation)
    sources = jnp.argsort(permutation)[labels]  # pi^-1(y)  [N]
    return optax.softmax_cross_entropy_with_integer_labels(_full_precision(logits), sources).mean()


def mapped_binary_cross_entropy(logits: jax.Array, labels: jax.Array, permutation: jax.Array) -> jax.Array:
    """Binary cross-entropy of the remapped probabilities against one-hot labels.

    Both log(q) and log(1 - q) come from the logits, so they stay exact where q rounds to 0 or 1, and are
    kept from falling below -100, as torch.nn.BCELoss does. The gradient is that of torch.nn.BCELoss, too: each
    q's is (q - target) / max(q * (1 - q), 1e-12), so what an image whose target has far less than 1e-12 asks of
    that class vanishes.

    Args:
        logits: The classifier's, before the mapping. [N, K]
        labels: Class of each image, in the order that the mapping leads to. Integers [N]
        permutation: Output mapping: the classifier's class i becomes class permutation[i]. Integers [K]

    Returns:
        The mean over the batch and the classes, in nats. Scalar.

    References:
        The authors' released program, refine.py: BCELoss of the permuted softmax.
    """
    _check(logits, labels, permutation)
    logits = _full_precision(logits)
    log_p = jax.nn.log_softmax(logits)  # [N, K]
    log_not_p = _log_one_minus_softmax(logits, log_p)  # [N, K]
    sources = jnp.argsort(permutation)[labels]
    is_source = jax.nn.one_hot(sources, logits.shape[-1], dtype=bool)  # [N, K]
    chosen = jnp.where(is_source, log_p, log_not_p)
    share = jnp.exp(jnp.minimum(0.0, log_p + log_not_p - math.log(_VARIANCE_FLOOR)))
    return -jnp.maximum(_scale_gradient(chosen, share), _LOG_FLOOR).mean()


def supervised_contrastive(
    features: jax.Array,
    labels: jax.Array,
    temperature: float,
    base_temperature: float | None = None,
    *,
    repeats: int = 1,
    axis_name: str | None = None,
) -> jax.Array:
    """Supervised contrastive loss: draws features of one label together, all others apart.

    Every view of every image is an anchor and is compared with every other view of every image. An anchor
    without any positive counts 0.

    Args:
        features: V views of N images, usually of unit length. [N, V, D]
        labels: Class of each image. Integers [N]
        temperature: Divides the inner products.
        base_temperature: None: no factor in front. A number: the loss times temperature / base_temperature, as in
            the released code, where it is 0.07.
        repeats: The value is that of every view given this many times over, at the price of once: what is
            equal is counted, not computed again. REFINE compares two identical views of T(x).
        axis_name: Mapped axis over which the batch is split: the anchors are of this device, what they are compared
            with is of all devices, and the mean over the devices is the loss of the whole batch.

    Returns:
        The mean over all anchors, in nats. Scalar.

    References:
        Khosla et al., Supervised Contrastive Learning, NeurIPS 2020, eq. 2; the authors' released program,
        utils/losses.py.
    """
    chex.assert_rank([features, labels], [3, 1])
    chex.assert_equal_shape_prefix([features, labels], 1)
    features = _full_precision(features)
    n, views, dim = features.shape
    others, other_labels = mapped.gather(features, axis_name), mapped.gather(labels, axis_name)
    total = len(others)  # images of the whole batch
    anchors = features.swapaxes(0, 1).reshape(views * n, dim)  # [V * n, D]
    others = others.swapaxes(0, 1).reshape(views * total, dim)  # [V * N, D]
    labels, other_labels = jnp.tile(labels, views), jnp.tile(other_labels, views)
    # Where each anchor stands among the others.  [V * n]
    own = (jnp.arange(views)[:, None] * total + mapped.first_row(n, axis_name) + jnp.arange(n)).reshape(-1)

    # TensorFloat-32 would spoil the small differences that a temperature of 0.1 magnifies.
    similarity = jnp.matmul(anchors, others.T, precision=jax.lax.Precision.HIGHEST) / temperature
    # How often each pair is met: `repeats` times, but an anchor never meets itself.
    meetings = repeats - jax.nn.one_hot(own, views * total, dtype=similarity.dtype)
    positives = meetings * (labels[:, None] == other_labels[None, :])
    if views * total * repeats == 1:  # a single view of a single image has nobody to be compared with
        log_total = jnp.zeros_like(similarity[0])
    else:
        log_total = jax.nn.logsumexp(similarity, axis=1, b=meetings)  # [V * n]
    count = positives.sum(axis=1)
    mean_log_likelihood = (positives * (similarity - log_total[:, None])).sum(axis=1) / jnp.maximum(count, 1.0)
    factor = 1.0 if base_temperature is None else temperature / base_temperature
    return -factor * mean_log_likelihood.mean()


def l2_normalize(features: jax.Array, epsilon: float = 1e-12) -> jax.Array:
    """Scales rows to unit length; a row of zeros stays zero and has a finite gradient.

    Args:
        features: [N, D]
        epsilon: Least length to divide by, as in torch.nn.functional.normalize.

    Returns:
        [N, D]
    """
    chex.assert_rank(features, 2)
    squared = jnp.sum(jnp.square(features), axis=1, keepdims=True)
    return features * jax.lax.rsqrt(jnp.maximum(squared, epsilon**2))


def _log_one_minus_softmax(logits: jax.Array, log_p: jax.Array) -> jax.Array:
    """log(1 - p), exact also where p is near 1.  [N, K]

    Only the largest p of a row can pass 1/2: for it the probability of all others is summed; for the
    others log1p is exact.
    """
    largest = jax.nn.one_hot(logits.argmax(axis=-1), logits.shape[-1], dtype=bool)
    others = jax.nn.logsumexp(jnp.where(largest, -jnp.inf, logits), axis=-1, keepdims=True)
    total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    # The inner `where` keeps log1p(-1), and with it an infinite gradient, out of the branch not taken.
    small_p = jnp.where(largest, 0.0, jnp.exp(log_p))
    return jnp.where(largest, others - total, jnp.log1p(-small_p))


def _scale_gradient(values: jax.Array, factor: jax.Array) -> jax.Array:
    """Leaves values as they are and multiplies what is propagated back through them."""
    constant = jax.lax.stop_gradient(values)
    return constant + jax.lax.stop_gradient(factor) * (values - constant)


def _full_precision(values: jax.Array) -> jax.Array:
    """Losses are computed in at least float32, whatever the network computes in."""
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def _check(logits: jax.Array, labels: jax.Array, permutation: jax.Array) -> None:
    chex.assert_rank([logits, labels, permutation], [2, 1, 1])
    chex.assert_equal_shape_prefix([logits, labels], 1)
    chex.assert_shape(permutation, (logits.shape[1],))
