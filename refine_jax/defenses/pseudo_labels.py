"""Whether a classifier's answers to augmented images can be taken for labels.

A trigger may be something that augmentation does to an image, too: WaNet's is a warp, and a crop that is resized back
is one. The classifier then answers the attacker's class to images that bear no trigger, and what learns from its
answers learns that.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from refine_jax.batches import map_batches
from refine_jax.evaluation import wilson_interval

SAMPLE = 512  # images that are asked about
# Of the images of other classes, the share that one class may draw before its answers are no labels any more. Measured
# on CIFAR-10 (results/cifar10_mini): 0.39 with the victim of WaNet, 0.12 with that of PhysicalBA, which is a weak one.
LARGEST = 0.2


def drawn_by_augmentation(
    classifier: Callable[[jax.Array], jax.Array],
    images: Any,
    augment: Callable[[jax.Array, jax.Array], jax.Array],
    key: jax.Array,
) -> dict[str, Any]:
    """Finds the class that augmentation draws most images to.

    Args:
        classifier: Float images in [0, 1] [N, H, W, 3] to scores [N, K].
        images: Clean ones, of which up to `SAMPLE` are asked about, drawn from the key. uint8 [N, H, W, 3]
        augment: (float images in [0, 1], key) to augmented ones.
        key: A key of jax.random.

    Returns:
        'augmentation_class', that class; 'augmentation_images', how many images get another answer before they are
        augmented; 'augmentation_share', how many of these get it afterwards.
    """
    choice, chance = jax.random.split(key)
    rows = np.sort(np.asarray(jax.random.permutation(choice, len(images))[:SAMPLE]))

    @jax.jit
    def answers(batch: jax.Array, numbers: jax.Array, classifier: Any, chance: jax.Array) -> jax.Array:
        originals = batch.astype(jnp.float32) / 255
        augmented = augment(originals, jax.random.fold_in(chance, numbers[0]))
        scores = [classifier(images) for images in (originals, augmented)]
        return jnp.stack([each.argmax(axis=-1) for each in scores], axis=1)

    before, after = map_batches(answers, np.asarray(images[rows]), (classifier, chance), np.arange(len(rows))).T
    others = {int(label): before != label for label in np.unique(after)}
    share = {label: float((after[other] == label).mean()) if other.any() else 0.0 for label, other in others.items()}
    label = max(share, key=lambda each: share[each])
    return {
        "augmentation_class": label,
        "augmentation_images": int(others[label].sum()),
        "augmentation_share": share[label],
    }


def is_too_much(found: Mapping[str, Any]) -> bool:
    """Returns whether augmentation draws more images to one class than labels can bear, beyond doubt (95 %)."""
    total = found.get("augmentation_images", 0)
    return total > 0 and wilson_interval(round(found["augmentation_share"] * total), total)[0] > LARGEST


def warning(found: Mapping[str, Any]) -> str:
    """Says what `drawn_by_augmentation` has found, and what to do about it."""
    share, label = 100 * found["augmentation_share"], found["augmentation_class"]
    return (
        f"augmentation alone has the classifier answer {share:.1f} % of the clean images of other classes with class "
        f"{label}, so pseudo-labels of augmented images are not to be trusted; defense.pseudo_labels='original' takes "
        "those of the images as they are"
    )
