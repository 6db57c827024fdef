"""One step of a victim's training: what it is shown of a batch, and what it learns from that."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import optax

from refine_jax import mapped
from refine_jax.datasets.augment import random_flip
from refine_jax.datasets.feed import batch_images
from refine_jax.keys import named_key
from refine_jax.training.state import TrainState

Augmentation = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def shown(
    data: Mapping[str, Any],
    batch: Mapping[str, jax.Array],
    step: jax.Array,
    augment: Augmentation,
    axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What the victim is shown of a batch: the attack's augmentation, then flips.

    Args:
        data: As of `train_step`.
        batch: Likewise.
        step: Steps done.
        augment: As of `train_step`.
        axis_name: Likewise.

    Returns:
        (images float in [0, 1] [B, H, W, 3], labels [B], a key for dropout).
    """
    attack_key, flip_key, dropout_key = jax.random.split(named_key(data["key"], step), 3)
    images, indices = batch_images(data, batch), batch["indices"]
    # An attack draws for the batch that it is given: every device gives it the whole one.
    whole, poisoned = (mapped.gather(rows, axis_name) for rows in (images, data["is_poisoned"][indices]))
    images = mapped.own_rows(augment(whole, poisoned, attack_key), len(images), axis_name)
    images = random_flip(images, flip_key, axis_name=axis_name)
    if axis_name is not None:  # dropout alone is not what one device would draw
        dropout_key = jax.random.fold_in(dropout_key, jax.lax.axis_index(axis_name))
    return images, data["labels"][indices], dropout_key


def train_step(
    network: nn.Module, tx: optax.GradientTransformation, augment: Augmentation, axis_name: str | None = None
):
    """Returns the function (state, data, batch) -> (state, metrics) that trains a classifier by one batch.

    Args:
        network: Of the classifier.
        tx: The optimizer.
        augment: (images float [B, H, W, 3], poisoned bool [B], key) -> images; before the flips.
        axis_name: Mapped axis over which the batch is split; the network has to be made with the same.

    `data` holds 'labels' [N], 'is_poisoned' [N], 'mean' and 'std' [3], and 'key'; images and indices as in
    `feed.batch_images`.
    """

    def step(state: TrainState, data: Mapping[str, Any], batch: Mapping[str, jax.Array]):
        images, labels, dropout_key = shown(data, batch, state.step, augment, axis_name)
        images = (images - data["mean"]) / data["std"]

        def loss_fn(params):
            logits, changed = network.apply(
                {"params": params, "batch_stats": state.batch_stats},
                images,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": dropout_key},
            )
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
            accuracy = (logits.argmax(axis=-1) == labels).mean()
            return loss, (changed.get("batch_stats", {}), accuracy)

        (loss, (batch_stats, accuracy)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        metrics = {"loss": loss, "accuracy": accuracy}
        gradients, metrics = mapped.average((gradients, metrics), axis_name)
        metrics["gradient_norm"] = optax.tree.norm(gradients)
        return state.updated(tx, gradients, batch_stats), metrics

    return step
