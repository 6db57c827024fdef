"""Optimizers and learning rates, from the settings of a training."""

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from refine_jax.errors import SettingError, choose

OPTIMIZERS = ("sgd", "adam")
SCHEDULES = ("multistep", "one_cycle")

# Every training's section of the configuration has these fields; what differs stands where it is used.
DEFAULTS = {
    "optimizer": "sgd",
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "schedule": "multistep",
    "milestones": (2 / 3, 13 / 15),
    "epochs": 150,
}


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Learning rate as a function of the step, constant within an epoch for 'multistep'.

    Args:
        kind: One of `SCHEDULES`.
        learning_rate: At the start ('multistep') or at the peak ('one_cycle').
        epochs: Length of the training.
        steps_per_epoch: Batches of an epoch.
        milestones: Fractions of the epochs at which the rate is multiplied by `decay`.
        decay: The factor.
        steps: With how many the training ends within its last epoch; None: with the epoch.
    """

    kind: str
    learning_rate: float
    epochs: int
    steps_per_epoch: int
    milestones: tuple[float, ...]
    decay: float
    steps: int | None = None

    @property
    def total(self) -> int:
        """Steps of the training."""
        return self.epochs * self.steps_per_epoch if self.steps is None else self.steps

    def __call__(self, step):
        """Returns the rate of step `step`, counted from 0."""
        if self.kind == "one_cycle":
            return optax.cosine_onecycle_schedule(self.total, self.learning_rate)(step)
        # One exact value an epoch, looked up: a product of factors on the device would round differently.
        rates = jnp.asarray([self.at_epoch(epoch) for epoch in range(self.epochs)])
        return rates[jnp.clip(step // self.steps_per_epoch, 0, self.epochs - 1)]

    def at_step(self, step: int) -> float:
        """Returns the rate of step `step` as a number of the host's."""
        if self.kind == "one_cycle":
            return float(self._all_rates[step])
        return self.at_epoch(step // self.steps_per_epoch)

    @functools.cached_property
    def _all_rates(self) -> np.ndarray:
        """The rate of every step, computed at once: one by one, logging them would take as long as a small step."""
        return np.asarray(jax.vmap(self)(jnp.arange(self.total)))

    def at_epoch(self, epoch: int) -> float:
        """Returns the rate of 0-based epoch `epoch` of a 'multistep' schedule.

        The factor counts from the milestone's epoch on, as in torch.optim.lr_scheduler.MultiStepLR.
        """
        passed = sum(epoch >= round(fraction * self.epochs) for fraction in self.milestones)
        return self.learning_rate * self.decay**passed


def create_schedule(section: Mapping[str, Any], steps_per_epoch: int) -> Schedule:
    """Returns the learning rate that a training's section of the settings asks for."""
    return Schedule(
        section["schedule"],
        section["learning_rate"],
        section["epochs"],
        steps_per_epoch,
        tuple(section["milestones"]),
        section["decay"],
    )


def create_optimizer(section: Mapping[str, Any], schedule: Schedule) -> optax.GradientTransformation:
    """Returns the optimizer that a training's section of the settings asks for.

    Weight decay is added to the gradient, of all parameters, before momentum and before Adam's moments, as
    torch.optim.SGD and torch.optim.Adam do.
    """
    direction = optax.trace(decay=section["momentum"]) if section["optimizer"] == "sgd" else optax.scale_by_adam()
    return optax.chain(
        optax.add_decayed_weights(section["weight_decay"]), direction, optax.scale_by_learning_rate(schedule)
    )


def check(prefix: str, section: Mapping[str, Any]) -> None:
    """Refuses what cannot be trained with.

    Args:
        prefix: Name of the section, for the error: 'victim' makes it say victim.epochs.
        section: Settings of a training.

    Raises:
        SettingError: The first setting that is impossible.
    """
    choose(f"{prefix}.optimizer", section["optimizer"], OPTIMIZERS)
    choose(f"{prefix}.schedule", section["schedule"], SCHEDULES)
    for field in ("epochs", "batch_size"):
        if not _is_number(section[field], int) or section[field] < 1:
            raise SettingError(f"{prefix}.{field}", section[field], "a whole number, 1 or more")
    for field, allowed, fine in (
        ("learning_rate", "a number above 0", lambda v: 0 < v < float("inf")),
        ("momentum", "a number, 0 or more and below 1", lambda v: 0 <= v < 1),
        ("weight_decay", "a number, 0 or more", lambda v: 0 <= v < float("inf")),
        ("decay", "a number above 0", lambda v: 0 < v < float("inf")),
    ):
        if not _is_number(section[field], int | float) or not fine(section[field]):
            raise SettingError(f"{prefix}.{field}", section[field], allowed)
    milestones = section["milestones"]
    if not _are_milestones(milestones):
        raise SettingError(
            f"{prefix}.milestones", milestones, "fractions of the epochs between 0 and 1, each above the one before"
        )


def _are_milestones(values: Any) -> bool:
    if not isinstance(values, list | tuple) or not all(_is_number(v, float) and 0 < v < 1 for v in values):
        return False
    return all(a < b for a, b in itertools.pairwise(values))


def _is_number(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
