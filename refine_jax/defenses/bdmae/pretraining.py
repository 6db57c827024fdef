"""A small masked autoencoder, trained on the clean images: for where no published one is at hand.

It learns what the published ones have learned: of each image most patches are hidden, and their pixels are to be said.

Source: He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022, whose optimizer this is, AdamW with
    decay 0.95 of its second moments, but for weight decay of biases and scales, which theirs leaves out. Pixels are
    not normalized patch by patch, as in the weights for visualization.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from refine_jax import mapped
from refine_jax.datasets import stream
from refine_jax.datasets.augment import random_flip, random_resized_crop
from refine_jax.datasets.feed import Feed, batch_images
from refine_jax.datasets.images import Split
from refine_jax.defenses.bdmae.autoencoder import normalized, to_patches
from refine_jax.defenses.bdmae.scores import hidden_count
from refine_jax.defenses.bdmae.settings import network
from refine_jax.keys import named_key
from refine_jax.networks.mae import MaskedAutoencoder
from refine_jax.training import loop
from refine_jax.training.optimizer import Schedule
from refine_jax.training.parallel import Execution, Step
from refine_jax.training.state import TrainState, create_train_state


def reconstruction(
    module: MaskedAutoencoder, params: Any, images: jax.Array, hidden: jax.Array, visible: int
) -> jax.Array:
    """The mean squared error of the hidden patches' normalized pixels; a scalar.

    Args:
        module: The autoencoder.
        params: Its parameters.
        images: Float in [0, 1]. [N, H, W, 3]
        hidden: As many of each image. bool [N, T]
        visible: How many are not.
    """
    inputs = normalized(images)
    restored: Any = module.apply({"params": params}, inputs, hidden, visible)
    errors = jnp.square(restored - to_patches(inputs, module.patch_size)).mean(axis=-1)  # [N, T]
    return (errors * hidden).sum() / hidden.sum()


def train_step(
    module: MaskedAutoencoder, tx: optax.GradientTransformation, mask_ratio: float, axis_name: str | None = None
):
    """Returns the function (state, data, batch) -> (state, metrics) that trains the autoencoder by one batch.

    `data` holds 'key'; images and indices as in `feed.batch_images`.
    """

    def step(state: TrainState, data: Mapping[str, Any], batch: Mapping[str, jax.Array]):
        crop_key, flip_key, key = jax.random.split(named_key(data["key"], state.step), 3)
        images = random_resized_crop(batch_images(data, batch), crop_key, axis_name=axis_name)
        images = random_flip(images, flip_key, axis_name=axis_name)
        rows, columns = module.grid(images.shape[1:3])
        patches = rows * columns
        uniforms = mapped.draw(lambda n: jax.random.uniform(key, (n, patches)), len(images), axis_name)
        count = hidden_count(patches, mask_ratio)
        hidden = jnp.argsort(jnp.argsort(uniforms, axis=-1), axis=-1) < count

        def loss_fn(params):
            return reconstruction(module, params, images, hidden, patches - count)

        loss, gradients = mapped.average(jax.value_and_grad(loss_fn)(state.params), axis_name)
        metrics = {"loss": loss, "gradient_norm": optax.tree.norm(gradients)}
        return state.updated(tx, gradients, state.batch_stats), metrics

    return step


def pretrain(
    clean: Split,
    settings: Mapping[str, Any],
    seed: int,
    kept: Mapping[str, Any],
    journal: loop.Journal | None,
    execution: Execution,
) -> loop.Outcome:
    """Trains a small autoencoder on the clean images, or what is left of that.

    Args:
        clean: Images; their labels are not looked at.
        settings: The section 'defense.bdmae' of a configuration.
        seed: For weights, order, augmentation and masks.
        kept: As in `loop.fit`.
        journal: Where to leave checkpoints and metrics.
        execution: On which devices, and how.
    """
    module, images = network(settings), clean.images
    on_device, streamed = stream.place("bdmae", images, execution.feed, execution.own())
    feed = Feed(
        len(images),
        settings["batch_size"],
        named_key(seed, "bdmae/order"),
        keep_last=False,
        images=streamed,
        workers=execution.workers,
    )
    epochs, learning_rate = settings["epochs"], settings["learning_rate"]
    schedule = Schedule("one_cycle", learning_rate, epochs, feed.steps_per_epoch, (), 1.0)
    tx = optax.adamw(schedule, b2=0.95, weight_decay=settings["weight_decay"])
    state = create_train_state(module, tx, named_key(seed, "bdmae/weights"), images.shape[1:3])
    trained = execution.computing(module)
    step = Step(lambda axis_name: train_step(trained, tx, settings["mask_ratio"], axis_name), execution)
    data = {**on_device, "key": named_key(seed, "bdmae/chance")}
    return loop.fit("bdmae", step, state, data, feed, schedule, journal, kept)
