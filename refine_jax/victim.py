"""The victim: a classifier trained on a poisoned training set, as the attacker would."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from refine_jax import adaptive, mapped, networks
from refine_jax.attacks.poisoning import Poisoned
from refine_jax.attacks.trigger import Attack
from refine_jax.classifier import Classifier
from refine_jax.datasets import stream
from refine_jax.datasets.feed import Feed
from refine_jax.datasets.images import Dataset
from refine_jax.defenses import refine
from refine_jax.errors import WorkdirError
from refine_jax.files import hash_arrays
from refine_jax.keys import named_key
from refine_jax.training import loop
from refine_jax.training.checkpoints import read
from refine_jax.training.optimizer import create_optimizer, create_schedule
from refine_jax.training.parallel import ONE_DEVICE, Execution, Step
from refine_jax.training.state import create_train_state
from refine_jax.victim_step import train_step as train_step


def check(settings: Mapping[str, Any], dataset: Dataset) -> None:
    """Refuses a network that cannot take these images, without making it.

    Args:
        settings: The section 'victim' of the configuration.
        dataset: Whose images it would be shown.

    Raises:
        SettingError: The images are too small or too large for it, or for the U-Net of an attacker who knows REFINE.
    """
    if "adaptive" in settings:
        adaptive.check_images(settings, len(dataset.train.labels), dataset.image_size)
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
    own = {name: value for name, value in settings.items() if name != "adaptive"}
    return _train("benign", dataset, clean, lambda images, poisoned, key: images, own, seed, journal, execution)


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

    With a section 'adaptive' in its settings also against a defense that the attacker reckons with, see `adaptive`.

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
    on_device, streamed = stream.place(stage, poisoned.images, execution.feed, execution.own())
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
    if "adaptive" not in settings:
        make = lambda axis_name: train_step(mapped.on_axis(network, axis_name), tx, augment, axis_name)  # noqa: E731
        return loop.fit(stage, Step(make, execution), state, data, feed, schedule, journal)

    own = settings["adaptive"]
    unet, unet_tx = adaptive.create_unet(own)
    changed = np.concatenate([poisoned.indices, poisoned.cover_indices])
    data |= {
        "is_changed": jnp.zeros(len(poisoned.labels), bool).at[changed].set(True),
        "mapping": adaptive.assumed_mapping(own["knowledge"], seed, dataset.num_classes),
    }
    state = adaptive.with_unet(state, unet, unet_tx, seed, dataset.image_size)
    unet = execution.computing(unet.clone(remat=execution.remat))

    def freeze(variables: Any) -> Classifier:
        return refine.frozen(to_classifier(variables, dataset, settings), execution)

    def make_adaptive(axis_name: str | None):
        first, second = mapped.on_axis(network, axis_name), mapped.on_axis(unet, axis_name)
        return adaptive.train_step(first, tx, augment, second, unet_tx, freeze, own, axis_name)

    return loop.fit(stage, Step(make_adaptive, execution), state, data, feed, schedule, journal)


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
