"""REFINE for several seeds at once: one program trains a U-Net of each in front of the same classifier.

What seeds differ in, weights, order, augmentation and output mapping, has an axis of seeds over which the training
step is mapped by `jax.vmap`; classifier and images are there once. Each seed comes to what `refine.fit` comes to with
it, up to rounding. Whether that is faster than one after another depends on the device (docs/performance.md).
"""

import contextlib
import dataclasses
import pathlib
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from refine_jax.classifier import Classifier
from refine_jax.datasets import corruptions, stream
from refine_jax.datasets.images import Split
from refine_jax.defenses import refine
from refine_jax.defenses.contract import Fitted
from refine_jax.errors import SettingError
from refine_jax.files import hash_json
from refine_jax.keys import named_key
from refine_jax.training import loop
from refine_jax.training.checkpoints import Checkpoints
from refine_jax.training.journal import Journal, resume
from refine_jax.training.log import read_metrics
from refine_jax.training.parallel import ONE_DEVICE, Execution, Step, StepFunction
from refine_jax.training.state import TrainState, create_train_state

# Where a state has the axis of seeds: everywhere but in the step, which is that of all.
_AXES: Any = TrainState(None, 0, 0, 0)  # type: ignore[arg-type]


def fit_seeds(
    classifier: Classifier,
    clean: Split,
    settings: Mapping[str, Any],
    seeds: Sequence[int],
    num_classes: int,
    journals: Sequence[Journal] = (),
    execution: Execution = ONE_DEVICE,
    *,
    folder: pathlib.Path | None = None,
    stage: str = "refine",
) -> list[Fitted]:
    """Trains a U-Net of each seed for one classifier, all in one program.

    Args:
        classifier: Stays as it is.
        clean: Images; their labels are not looked at.
        settings: As in `refine.fit`, the same for all seeds.
        seeds: As in `refine.fit`, each once.
        num_classes: K.
        journals: One a seed: where to leave, at the end, what `refine.fit` leaves; it goes on from there as from its
            own. With a folder only.
        execution: On which devices, and how; each takes its part of the batches of all seeds. More than one device has
            not been tried.
        folder: Where checkpoints and metrics of all are until then; deleted at the end. None: a training that is
            stopped is lost.
        stage: Name of the training, for people and in metrics.jsonl.

    Returns:
        As of `refine.fit`, one a seed. `train_seconds` are a seed's share of those of all; `train_images_per_second`
        those of all seeds.

    Raises:
        SettingError: A seed is there twice, or none is; or images are corrupted, which each seed does in its own way;
            or as of `refine.fit`.
        WorkdirError: The folder is of other seeds, settings or precision, or of another classifier.
    """
    seeds = tuple(seeds)
    if not seeds or len(set(seeds)) < len(seeds):
        raise SettingError("seeds", seeds, "one or more seeds, each once")
    if settings["clean_corruption"] != corruptions.NONE:
        raise SettingError("defense.clean_corruption", settings["clean_corruption"], "none with several seeds at once")
    if len(journals) != (0 if folder is None else len(seeds)):
        raise ValueError(f"{len(journals)} journals with folder = {folder}: allowed: one a seed and a folder, or none")
    training = refine.Training.of(classifier, settings, execution)
    image_size = clean.images.shape[1:3]
    fraction, keys = settings["data_fraction"], [named_key(seed, "refine/data") for seed in seeds]
    taken = [refine.take_fraction(clean.images, fraction, key) for key in keys]
    findings = [training.findings(images, seed) for images, seed in zip(taken, seeds, strict=True)]
    on_device, streamed = stream.place(stage, clean.images, execution.feed, execution.own())
    rows = [refine.fraction_rows(len(clean.images), fraction, key) for key in keys]
    feeds: Any = _Feeds(training, seeds, rows, None if streamed is None else taken)
    schedule, tx = training.descent(feeds.steps_per_epoch)
    state, drawn = begin(training, tx, seeds, num_classes, image_size)
    data = {**on_device, "classifier": refine.frozen(classifier, execution), **drawn}
    step = Step(lambda axis_name: step_of_seeds(training.step(tx, axis_name), seeds, drawn), execution)
    together = None
    if folder is not None:
        trained = {"settings_sha256": hash_json(settings), "precision": execution.precision}
        identity = {**journals[0].identity, "seeds": list(seeds), **trained}
        places: dict[str, Any] = {"checkpoints": folder / "checkpoints", "metrics": folder / "metrics.jsonl"}
        together = dataclasses.replace(journals[0], **places, identity=identity, tensorboard=False)
        folder.mkdir(parents=True, exist_ok=True)
    kept = {"permutation": drawn["permutation"]}
    outcome = loop.fit(stage, step, state, data, feeds, schedule, together, kept)
    measured = [] if together is None else read_metrics(together.metrics)
    fitted = []
    for place, seed in enumerate(seeds):
        own_state, permutation = state_of_seed(outcome.state, place), drawn["permutation"][place]
        seconds, speed = outcome.seconds / len(seeds), outcome.images_per_second
        own = loop.Outcome(own_state, seconds, None if speed is None else speed * len(seeds))
        defended = training.defended(own_state, permutation, image_size)
        fitted.append(dataclasses.replace(Fitted.of(defended, own), findings=findings[place]))
        if journals:
            _leave(journals[place], stage, own, {"permutation": permutation}, [_row_of(row, seed) for row in measured])
    if folder is not None:
        shutil.rmtree(folder)
    return fitted


def begin(
    training: refine.Training,
    tx: optax.GradientTransformation,
    seeds: Sequence[int],
    num_classes: int,
    image_size: tuple[int, int],
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Returns the state of several seeds at step 0, and what is drawn for each; see `step_of_seeds`."""
    keys = jnp.stack([named_key(seed, "refine/weights") for seed in seeds])
    create = jax.vmap(lambda key: create_train_state(training.unet, tx, key, image_size), out_axes=_AXES)
    drawn = jax.tree.map(lambda *of: jnp.stack(of), *(training.draw(seed, num_classes) for seed in seeds))
    return create(keys), drawn


def step_of_seeds(step: StepFunction, seeds: Sequence[int], drawn: Collection[str]) -> StepFunction:
    """Returns the training step of several seeds.

    Args:
        step: Of one: (state, data, batch) -> (state, metrics).
        seeds: Their numbers, by which metrics are told apart.
        drawn: Names of the data that each has for itself; the rest is common.

    Returns:
        The function (state, data, batch) -> (state, metrics), where the state has the seeds in front of every axis but
        in `step`, as what is `drawn` has, and the batch has them after the axis of images. metrics: 'loss', the mean,
        and 'NAME_of_seed_SEED'.
    """

    def steps(state, data, batch):
        of_data = {name: 0 if name in drawn else None for name in data}
        state, metrics = jax.vmap(step, (_AXES, of_data, 1), (_AXES, 0))(state, data, batch)
        own = {_metric(name, seed): values[i] for name, values in metrics.items() for i, seed in enumerate(seeds)}
        return state, {"loss": metrics["loss"].mean(), **own}

    return steps


def _metric(name: str, seed: int) -> str:
    return f"{name}_of_seed_{seed}"


def _row_of(row: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """A seed's own row of metrics, as its training alone would write it."""
    ending = _metric("", seed)
    general = {name: row[name] for name in ("step", "epoch", "learning_rate")}
    return general | {name.removesuffix(ending): value for name, value in row.items() if name.endswith(ending)}


def state_of_seed(state: TrainState, place: int) -> TrainState:
    """Returns the state of the seed at a place in the order of all."""
    own = jax.tree.map(lambda leaf: leaf[place], (state.params, state.batch_stats, state.opt_state))
    return TrainState(state.step, *own)


def _leave(
    journal: Journal, stage: str, outcome: loop.Outcome, kept: Mapping[str, Any], rows: Sequence[dict[str, Any]]
) -> None:
    """Writes what a seed has come to where its training alone would have left it."""
    total, begun = int(outcome.state.step), dataclasses.replace(outcome.state, step=jnp.zeros((), jnp.int32))
    with Checkpoints(journal.checkpoints, journal.keep_checkpoints) as checkpoints:
        state, writer = resume(stage, begun, journal, checkpoints, kept)
        with contextlib.closing(writer):
            if int(state.step) < total:
                writer.write_metrics([row for row in rows if row["step"] > state.step])
                writer.save(total, outcome.state, outcome.seconds)


class _Feeds:
    """The feeds of several seeds, side by side: a batch has an axis of seeds after that of images.

    Args:
        training: Of all.
        seeds: In the order of that axis.
        rows: Numbers of each seed's images, of all there are. Integers [n]
        streamed: Each seed's images, which its batches bring; None: they are looked up on the device, among all.
    """

    def __init__(
        self,
        training: refine.Training,
        seeds: Sequence[int],
        rows: Sequence[np.ndarray],
        streamed: Sequence[Any] | None,
    ):
        self._rows, taken = rows, streamed or [None] * len(seeds)
        count = len(self._rows[0])
        self._feeds: list[Any] = [training.feed(count, seed, own) for seed, own in zip(seeds, taken, strict=True)]
        self.num_examples, self.batch_size = count, self._feeds[0].batch_size
        self.steps_per_epoch = self._feeds[0].steps_per_epoch

    def indices(self, step: int) -> np.ndarray:
        """Returns which images step `step` (counted from 0) trains on.  int32 [B, seeds]"""
        return np.stack([own[feed.indices(step)] for own, feed in zip(self._rows, self._feeds, strict=True)], axis=1)

    def batches(self, first: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
        """Yields the batches of steps `first` to `stop` - 1.  [B, seeds, ...]"""
        with contextlib.ExitStack() as opened:
            own = [opened.enter_context(contextlib.closing(feed.batches(first, stop))) for feed in self._feeds]
            for batches in zip(*own, strict=True):
                chosen = [rows[batch["indices"]] for rows, batch in zip(self._rows, batches, strict=True)]
                stacked = {name: np.stack([batch[name] for batch in batches], axis=1) for name in batches[0]}
                yield {**stacked, "indices": np.stack(chosen, axis=1)}
