"""What REFINE asks of its U-Net: the transformation, and the loss of a batch.

References:
    Chen et al., "REFINE: Inversion-Free Backdoor Defense via Model Reprogramming", ICLR 2025, sections 4.1 to
    4.3; the authors' released program, refine.py.
"""

from collections.abc import Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp

from refine_jax.classifier import Classifier
from refine_jax.defenses.refine_settings import LOSSES, Objective
from refine_jax.losses import l2_normalize, supervised_contrastive
from refine_jax.networks import layers
from refine_jax.networks.unet import UNet


def transform(unet: UNet, variables: Any, classifier: Classifier, images: jax.Array, settings, *, train: bool):
    """Input transformation: T(x) = clip(U-Net(x), 0, 1).

    Args:
        unet: The module.
        variables: Its 'params' and 'batch_stats'.
        classifier: Whose preprocessing comes first where `unet_input` is 'normalized'.
        images: Float in [0, 1]. [N, H, W, 3]
        settings: As in `objective`.
        train: Whether BatchNorm normalizes by the batch.

    Returns:
        (T(x) [N, H, W, 3], the new batch_stats, as they were where not `train`).
    """
    chex.assert_type(images, float)  # whole numbers would pass the U-Net, and come out as an image
    if Objective.of(settings).unet_input == "normalized":
        images = classifier.preprocess(images)
    outputs: Any
    if train:
        outputs, changed = unet.apply(variables, images, train=True, mutable=["batch_stats"])
        return jnp.clip(outputs, 0, 1), changed["batch_stats"]
    outputs = unet.apply(variables, images, train=False)
    return jnp.clip(outputs, 0, 1), variables["batch_stats"]


def transformed_logits(classifier: Classifier, transformed: jax.Array, settings) -> jax.Array:
    """The classifier's logits of transformed images, before the output mapping.  [N, H, W, 3] -> [N, K]"""
    return classifier.logits(_network_inputs(classifier, transformed, settings))


def _network_inputs(classifier: Classifier, transformed: jax.Array, settings) -> jax.Array:
    """What the classifier's network is shown of transformed images.  [N, H, W, 3] -> [N, h, w, 3]"""
    if Objective.of(settings).unet_input == "normalized":
        return transformed
    return classifier.preprocess(transformed)


def _logits_and_features(classifier: Classifier, transformed: jax.Array, settings: Objective):
    """The classifier's logits of transformed images, and what the contrastive loss compares.  -> [N, K], [N, ...]"""
    inputs = _network_inputs(classifier, transformed, settings)
    if settings.contrastive_features == "features":
        seen = classifier.features(inputs)  # once, for both
        pooled = layers.at_least_float32(seen)
        return classifier.head(seen), pooled.mean(axis=tuple(range(1, pooled.ndim - 1)))  # what a linear head sees
    logits = classifier.logits(inputs)
    return logits, logits if settings.contrastive_features == "logits" else transformed


def objective(
    unet: UNet,
    unet_variables: Any,
    classifier: Classifier,
    images: jax.Array,
    permutation: jax.Array,
    settings: Mapping[str, Any] | Objective | None,
    *,
    originals: jax.Array | None = None,
    axis_name: str | None = None,
) -> tuple[jax.Array, dict[str, Any]]:
    """The loss of REFINE on a batch of clean images, without labels.

    Args:
        unet: The module.
        unet_variables: {'params', 'batch_stats'}; BatchNorm runs in training mode.
        classifier: Frozen, in inference mode.
        images: Augmented already; float in [0, 1]. [N, H, W, 3]
        permutation: Output mapping. Integers [K]
        settings: See `Objective.of`.
        originals: The images whose classes are the pseudo-labels; None: `images`. [N, H, W, 3]
        axis_name: Mapped axis over which the batch is split; the mean over it is the loss of the whole batch. The
            U-Net has to be made with the same.

    Returns:
        (total, aux). total: classification + sup_weight * contrastive, a scalar. aux: 'classification',
        'contrastive' (scalars), 'pseudo_labels' [N], 'batch_stats' (the U-Net's new ones), 'transformed'
        [N, H, W, 3], 'logits' (the classifier's of T(x), before the mapping) [N, K].
    """
    chex.assert_rank([images, permutation], [4, 1])
    settings = Objective.of(settings)

    pseudo_labels = classifier(images if originals is None else originals).argmax(axis=-1)  # y = argmax F(x)  [N]
    transformed, batch_stats = transform(unet, unet_variables, classifier, images, settings, train=True)
    logits, features = _logits_and_features(classifier, transformed, settings)  # [N, K], [N, ...]
    classification = LOSSES[settings.loss](logits, pseudo_labels, permutation)
    # Two views of each image, as the loss is defined; both are T(x).
    contrastive = supervised_contrastive(
        l2_normalize(features.reshape(len(images), -1))[:, None],  # [N, 1, D]
        pseudo_labels,
        settings.temperature,
        settings.base_temperature,
        repeats=2,
        axis_name=axis_name,
    )
    total = classification + settings.sup_weight * contrastive
    return total, {
        "classification": classification,
        "contrastive": contrastive,
        "pseudo_labels": pseudo_labels,
        "batch_stats": batch_stats,
        "transformed": transformed,
        "logits": logits,
    }
