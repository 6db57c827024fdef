"""The trainings that BTI-DBF consists of, one after another on the same images, each with checkpoints of its own."""

import dataclasses
import pathlib
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from refine_jax import mapped
from refine_jax.datasets import stream
from refine_jax.datasets.augment import random_crop, random_flip
from refine_jax.datasets.feed import Feed, batch_images
from refine_jax.datasets.images import Split
from refine_jax.keys import named_key
from refine_jax.training import loop
from refine_jax.training.optimizer import Schedule
from refine_jax.training.parallel import Execution, Step
from refine_jax.training.state import TrainState

# (params, batch_stats, data, images float in [0, 1], labels, key) -> (loss, (new batch_stats, metrics))
Objective = Callable[..., tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]]


class Phases:
    """Trains phase after phase on some of the clean images, which it draws.

    Args:
        name: Of the defense.
        clean: Images and labels there are.
        settings: Of the defense.
        seed: For the choice of the images, their order and augmentation.
        journal: Of the defense; a phase has a folder in that of its checkpoints. None: nothing is left.
        execution: On which devices, and how.

    Attributes:
        images: The chosen ones.
        labels: Theirs.
        seconds: Spent training, over all runs that it took.
        parts: Of the phases that are done, as in `Fitted`.
    """

    def __init__(
        self,
        name: str,
        clean: Split,
        settings: Mapping[str, Any],
        seed: int,
        journal: loop.Journal | None,
        execution: Execution,
    ):
        count = round(settings["data_fraction"] * len(clean.labels))
        drawn = jax.random.permutation(named_key(seed, "bti_dbf/data"), len(clean.labels))[:count]
        chosen = np.sort(np.asarray(drawn))
        self.images, self.labels = clean.images.take(chosen, axis=0), clean.labels[chosen]
        self.settings, self.seed, self.execution = settings, seed, execution
        self._name, self._journal = name, journal
        self._on_device, self._streamed = stream.place(name, self.images, execution.feed, execution.own())
        self.seconds = 0.0
        self.parts: dict[str, int] = {}
        self._done, self._steady = 0, 0.0  # images, and seconds that they take at full speed
        self._steps: dict[Hashable, Step] = {}

    @property
    def images_per_second(self) -> float | None:
        """Of all phases of this run; None where nothing was trained in it."""
        return self._done / self._steady if self._done else None

    def step(
        self, kind: Hashable, objective: Callable[[str | None], Objective], tx: optax.GradientTransformation
    ) -> Step:
        """Returns the training step of phases of one kind, made and compiled once for all of them.

        Args:
            kind: Tells the kinds apart.
            objective: (axis_name) -> the objective of `training_step`.
            tx: The optimizer.
        """
        if kind not in self._steps:
            padding = self.settings["crop_padding"]
            make = lambda axis_name: training_step(objective(axis_name), tx, padding, axis_name)  # noqa: E731
            self._steps[kind] = Step(make, self.execution)
        return self._steps[kind]

    def train(
        self,
        phase: str,
        step: Step,
        state: TrainState,
        data: Mapping[str, Any],
        epochs: int,
        learning_rate: float,
        kept: Mapping[str, Any] = {},
    ) -> TrainState:
        """Trains one phase, or what is left of it.

        Args:
            phase: Its name, of its folder too.
            step: From `step`.
            state: At step 0; stays as it is.
            data: What the objective needs beside images and labels.
            epochs: Length.
            learning_rate: For the log: the optimizer has its own.
            kept: As in `loop.fit`.

        Returns:
            The state after the last step.
        """
        feed = Feed(
            len(self.images),
            self.settings["batch_size"],
            named_key(self.seed, "bti_dbf/order", phase),
            keep_last=False,
            images=self._streamed,
            workers=self.execution.workers,
        )
        schedule = Schedule("multistep", learning_rate, epochs, feed.steps_per_epoch, (), 1.0)
        given = {
            **self._on_device,
            **data,
            "labels": jnp.asarray(self.labels),
            "key": named_key(self.seed, "bti_dbf/chance", phase),
        }
        journal = self._journal
        if journal is not None:
            journal = dataclasses.replace(journal, checkpoints=checkpoints_of(journal.checkpoints, phase))
        # A training overwrites its state, of which arrays may also be in the data, or the state of another.
        state = jax.tree.map(jnp.copy, state)
        outcome = loop.fit(f"{self._name} {phase}", step, state, given, feed, schedule, journal, kept)
        self.seconds += outcome.seconds
        if self._journal is not None:
            self.parts[_folder_of(phase)] = int(outcome.state.step)
        if outcome.images_per_second:
            images = epochs * feed.steps_per_epoch * feed.batch_size
            self._done, self._steady = self._done + images, self._steady + images / outcome.images_per_second
        return outcome.state


def training_step(
    objective: Objective, tx: optax.GradientTransformation, crop_padding: int, axis_name: str | None = None
):
    """Returns the function (state, data, batch) -> (state, metrics) that trains `state.params` by one batch.

    Args:
        objective: (params, batch_stats, data, images, labels, key) -> (loss, (batch_stats, metrics)); images are
            augmented, float in [0, 1].
        tx: The optimizer.
        crop_padding: Of the augmentation.
        axis_name: Mapped axis over which the batch is split.

    `data` holds 'labels' [N] and 'key'; images and indices as in `feed.batch_images`.
    """

    def step(state: TrainState, data: Mapping[str, Any], batch: Mapping[str, jax.Array]):
        crop_key, flip_key, key = jax.random.split(named_key(data["key"], state.step), 3)
        images = random_crop(batch_images(data, batch), crop_key, crop_padding, axis_name=axis_name)
        images = random_flip(images, flip_key, axis_name=axis_name)
        labels = data["labels"][batch["indices"]]

        def loss_fn(params):
            return objective(params, state.batch_stats, data, images, labels, key)

        (loss, (batch_stats, metrics)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        gradients, metrics = mapped.average((gradients, {"loss": loss, **metrics}), axis_name)
        metrics["gradient_norm"] = optax.tree.norm(gradients)
        return state.updated(tx, gradients, batch_stats), metrics

    return step


def fresh_state(params: Any, batch_stats: Any, opt_state: optax.OptState) -> TrainState:
    """Returns a state at step 0."""
    return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, opt_state)


def carried(state: TrainState) -> TrainState:
    """Returns the state of a training that the next one of its kind goes on from, optimizer included."""
    return fresh_state(state.params, state.batch_stats, state.opt_state)


def checkpoints_of(folder: pathlib.Path, phase: str) -> pathlib.Path:
    """Where a phase's checkpoints lie, in the defense's folder of them."""
    return folder / _folder_of(phase)


def _folder_of(phase: str) -> str:
    return f"{phase}/checkpoints"
