"""The victim: a classifier trained on a poisoned training set, as the attacker would."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from refine_jax import mapped, networks
from refine_jax.attacks.poisoning import Poisoned
from refine_jax.attacks.trigger import Attack
from refine_jax.classifier import Classifier
from refine_jax.datasets import stream
from refine_jax.datasets.augment import random_flip
from refine_jax.datasets.feed import Feed, batch_images
from refine_jax.datasets.images import Dataset
from refine_jax.errors import WorkdirError
from refine_jax.files import hash_arrays
from refine_jax.keys import named_key
from refine_jax.training import loop
from refine_jax.training.checkpoints import read
from refine_jax.training.optimizer import create_optimizer, create_schedule
from refine_jax.training.parallel import ONE_DEVICE, Execution, Step
from refine_jax.training.state import TrainState, create_train_state

Augmentation = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def check(settings: Mapping[str, Any], dataset: Dataset) -> None:
    """Refuses a network that cannot take these images, without making it.

    Args:
        settings: The section 'victim' of the configuration.
        dataset: Whose images it would be shown.

    Raises:
        SettingError: The images are too small or too large for it.
    """
    network = networks.build(settings["name"], dataset.num_classes, **network_options(settings, dataset.image_size))
    images = jax.ShapeDtypeStruct((1, *dataset.image_size, 3), jnp.float32)
    jax.eval_shape(network.init, jax.random.key(0), images)


def train_benign(
    dataset: Dataset,
    settings: Mapping[str, Any],
    seed: int,
    journal: loop.Journal | None = None,
    execution: Execution = ONE_DEVICE,
) -> loop.Outcome:
    """Trains a classifier as `train` does, but on clean images; for attacks that need one."""
    none = np.empty(0, np.int32)
    clean = Poisoned(dataset.train.images, dataset.train.labels, none, none)
    return _train("benign", dataset, clean, lambda images, poisoned, key: images, settings, seed, journal, execution)


def train(
    dataset: Dataset,
    attack: Attack,
    poisoned: Poisoned,
    settings: Mapping[str, Any],
    seed: int,
    journal: loop.Journal | None = None,
    execution: Execution = ONE_DEVICE,
) -> loop.Outcome:
    """Trains a classifier on poisoned images, with cross-entropy against the labels that came with them.

    Args:
        dataset: Tells size, classes and statistics of the images.
        attack: Whose augmentation the images go through.
        poisoned: What the attack made of the training images.
        settings: The section 'victim' of the configuration.
        seed: For weights, order and augmentation.
        journal: Where to leave checkpoints and metrics.
        execution: On which devices, and how.

    Returns:
        The trained state; `to_classifier` makes a classifier of it.
    """
    return _train("victim", dataset, poisoned, attack.augment, settings, seed, journal, execution)


def _train(stage, dataset, poisoned, augment, settings, seed, journal, execution) -> loop.Outcome:
    options = network_options(settings, dataset.image_size) | ({"remat": True} if execution.remat else {})
    network = networks.build(settings["name"], dataset.num_classes, **options)
    on_device, streamed = stream.place(stage, poisoned.images, execution.feed, execution.chosen()[0])
    feed = Feed(
        len(poisoned.labels),
        settings["batch_size"],
        named_key(seed, f"{stage}/order"),
        keep_last=True,
        images=streamed,
        workers=execution.workers,
    )
    schedule = create_schedule(settings, feed.steps_per_epoch)
    tx = create_optimizer(settings, schedule)
    state = create_train_state(network, tx, named_key(seed, f"{stage}/weights"), dataset.image_size)
    data = {
        **on_device,
        "labels": jnp.asarray(poisoned.labels),
        "is_poisoned": jnp.zeros(len(poisoned.labels), bool).at[poisoned.indices].set(True),
        "mean": jnp.asarray(dataset.mean),
        "std": jnp.asarray(dataset.std),
        "key": named_key(seed, f"{stage}/augmentation"),
    }
    network = execution.computing(network)
    step = Step(lambda axis_name: train_step(mapped.on_axis(network, axis_name), tx, augment, axis_name), execution)
    return loop.fit(stage, step, state, data, feed, schedule, journal)


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
        attack_key, flip_key, dropout_key = jax.random.split(named_key(data["key"], state.step), 3)
        images, indices = batch_images(data, batch), batch["indices"]
        # An attack draws for the batch that it is given: every device gives it the whole one.
        whole, poisoned = (mapped.gather(rows, axis_name) for rows in (images, data["is_poisoned"][indices]))
        images = mapped.own_rows(augment(whole, poisoned, attack_key), len(images), axis_name)
        images = (random_flip(images, flip_key, axis_name=axis_name) - data["mean"]) / data["std"]
        labels = data["labels"][indices]

        if axis_name is not None:  # dropout alone is not what one device would draw
            dropout_key = jax.random.fold_in(dropout_key, jax.lax.axis_index(axis_name))

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


def load(folder: pathlib.Path, sha256: str) -> dict[str, Any]:
    """Returns the variables of the victim that a stage has left in its folder.

    Args:
        folder: Of the stage.
        sha256: What their hash was then.

    Raises:
        WorkdirError: They cannot be read, or are others.
    """
    checkpoints = folder / "checkpoints"
    arrays, _ = read(checkpoints)
    variables = {"params": arrays["params"], "batch_stats": arrays["batch_stats"]}
    if hash_arrays(variables) != sha256:
        raise WorkdirError(f"the weights in {checkpoints} are not those that were trained")
    return variables


def load_classifier(
    folder: pathlib.Path, outcome: Mapping[str, Any], dataset: Dataset, settings: Mapping[str, Any]
) -> Classifier:
    """Returns the victim that a stage has left in its folder.

    Args:
        folder: Of the stage.
        outcome: What its record says that it has come to.
        dataset: That it was trained on.
        settings: The section 'victim' of the configuration.

    Raises:
        WorkdirError: As `load`.
    """
    variables = load(folder, outcome["victim_sha256"])
    if "classifier" in outcome:
        return Classifier.from_description(outcome["classifier"], variables)
    return to_classifier(variables, dataset, settings)  # the first versions have not noted it


def to_classifier(variables: Any, dataset: Dataset, settings: Mapping[str, Any]) -> Classifier:
    """Returns the classifier that a victim's variables are, with the preprocessing it was trained with."""
    return Classifier(
        settings["name"],
        variables,
        dataset.num_classes,
        dataset.mean,
        dataset.std,
        options=network_options(settings, dataset.image_size),
    )


def network_options(settings: Mapping[str, Any], image_size: tuple[int, int]) -> dict[str, Any]:
    """Returns which of the settings the network takes as options, the image size too where it wants that.

    Args:
        settings: The section 'victim' of the configuration.
        image_size: (H, W).
    """
    available = {"width": settings["width"], "image_size": image_size[0]}
    return {name: available[name] for name in networks.options(settings["name"]) if name in available}
