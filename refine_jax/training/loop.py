"""The loop that both trainings run: steps, progress, checkpoints, and going on from the last of them."""

import contextlib
import dataclasses
import io
import itertools
import logging
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from refine_jax.datasets.feed import Feed
from refine_jax.errors import RefineError
from refine_jax.training import processes
from refine_jax.training.checkpoints import Checkpoints
from refine_jax.training.interruption import Interrupted, StopRequest
from refine_jax.training.journal import Journal, Unwritten, resume
from refine_jax.training.log import Progress, format_seconds
from refine_jax.training.optimizer import Schedule
from refine_jax.training.pace import Pace
from refine_jax.training.parallel import Step
from refine_jax.training.state import TrainState

logger = logging.getLogger(__name__)

# Metrics wait on the device for at most this long: fetching them makes the host wait for the step.
_FETCH_SECONDS = 1.0
# Images of a batch that an error names; all of them are left in a file.
_NAMED = 8


class Diverged(RefineError):  # noqa: N818 - a state
    """The loss, or the gradient, is no longer a finite number."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Of a training that came to its end.

    Attributes:
        state: After the last step.
        seconds: Spent training, over all runs that it took.
        images_per_second: Of the last run, compilation left out; None where it had no step left to do.
    """

    state: TrainState
    seconds: float
    images_per_second: float | None


def fit(
    stage: str,
    step: Step,
    state: TrainState,
    data: Any,
    feed: Feed,
    schedule: Schedule,
    journal: Journal | None = None,
    kept: Mapping[str, Any] = {},
) -> Outcome:
    """Trains from `state`, or from the newest checkpoint, to the end of the schedule.

    Args:
        stage: Name of the training, for people and in metrics.jsonl.
        step: (state, data, batch) -> (state, metrics, 'loss' among them).
        state: At step 0.
        data: Whatever `step` needs beside its batch.
        feed: Tells which images make up which batch.
        schedule: Its `total` is the length of the training.
        journal: None: nothing is written, and a training that is stopped is lost.
        kept: Arrays that belong to what is trained and are kept in every checkpoint beside it.

    Returns:
        The trained state, with the time it took.

    Raises:
        WorkdirError: A checkpoint has another identity, or other arrays than `kept`, or none is whole.
        StorageError: A checkpoint cannot be written.
        Interrupted: SIGINT or SIGTERM came; with a journal, the state was saved.
        Diverged: One of the metrics is not finite; with a journal, the state was left to look at.
        RefineError: Of the step, which has then left its state alone; with a journal, that is saved.
    """
    if journal is None:
        with StopRequest() as stop, _batches(state, feed, schedule) as batches:
            return _run(stage, step, state, data, batches, feed, schedule, stop, Unwritten())
    # The last checkpoint is written before signals mean again what they meant.
    with StopRequest() as stop, Checkpoints(journal.checkpoints, journal.keep_checkpoints) as checkpoints:
        state, writer = resume(stage, state, journal, checkpoints, kept)
        with contextlib.closing(writer), _batches(state, feed, schedule) as batches:
            return _run(stage, step, state, data, batches, feed, schedule, stop, writer)


def _batches(state, feed, schedule) -> contextlib.closing:
    """The batches from a state on; whatever reads them ahead ends with the training, however that ends."""
    return contextlib.closing(feed.batches(int(state.step), schedule.total))


def _run(stage, step, state, data, batches, feed, schedule, stop, writer) -> Outcome:
    first, total = int(state.step), schedule.total
    progress = Progress(stage, schedule.epochs, None if processes.is_first() else io.StringIO())
    state, data = step.place(state), step.place(data)
    processes.wait_for_all(f"{stage} begins")
    step.connect()
    started = fetched = time.monotonic()
    pace = Pace()
    # One step is computed while the next is handed over; more in flight would keep a request to stop waiting.
    waiting: list[tuple[range, dict[str, jax.Array]]] = []
    for numbers, together in _calls(batches, feed, first, total, step.steps_per_call):
        sizes = [len(batch["indices"]) for batch in together]
        compiles = pace.is_new(sizes)
        if compiles:
            jax.block_until_ready([metrics for _, metrics in waiting])
            pace.stand()
        try:
            if len(together) == 1:
                state, metrics = step(state, data, together[0])
            else:
                state, metrics = step.several(state, data, together)
        except RefineError:  # of a step that asks somebody else, who did not answer: the state is what it was before
            if not writer.has_saved(numbers.start):
                writer.write_metrics(_finite_rows(stage, waiting, feed, schedule, writer, numbers.start, state))
                writer.save(numbers.start, state, time.monotonic() - started)
            raise
        waiting.append((numbers, metrics))
        if compiles:
            jax.block_until_ready(metrics)
            pace.go_on()
        else:
            pace.count(sizes)
        if len(waiting) > 1:
            jax.block_until_ready(waiting[-2][1])
        now, done = time.monotonic(), numbers.stop
        stopping, due, late = processes.agreed(stop.requested, writer.is_due(done), now - fetched >= _FETCH_SECONDS)
        saving = stopping or due or done == total
        if not (saving or late or compiles):
            continue

        rows = _finite_rows(stage, waiting, feed, schedule, writer, done, state)
        waiting.clear()
        fetched = time.monotonic()
        writer.write_metrics(rows)
        epoch, last = done / feed.steps_per_epoch, rows[-1]
        rate, left = pace.images_per_second, pace.seconds_for(total - done)
        progress.show(epoch, last["loss"], last["learning_rate"], rate, left, last=done == total)
        if saving:
            writer.save(done, state, fetched - started)
        if stopping:
            progress.end_line()
            raise Interrupted(f"{stage} stopped after step {done} of {total}: {writer.where_saved()}")
    seconds = writer.seconds + time.monotonic() - started
    if first < total:
        logger.info("%s: %d steps in %s", stage, total - first, format_seconds(time.monotonic() - started))
    return Outcome(state, seconds, pace.images_per_second)


def _finite_rows(stage, waiting, feed, schedule, writer, done, state) -> list[dict[str, Any]]:
    """Brings metrics to the host, in rows, and stops a training that has diverged."""
    rows = _fetch(waiting, feed, schedule)
    _check_finite(stage, rows, feed, writer, done, state)
    return rows


def _fetch(waiting, feed, schedule) -> list[dict[str, Any]]:
    """Brings metrics to the host, in rows."""
    rows = []
    for numbers, metrics in jax.device_get(waiting):
        for place, number in enumerate(numbers):
            epoch = number // feed.steps_per_epoch
            row = {"step": number + 1, "epoch": epoch, "learning_rate": schedule.at_step(number)}
            rows.append(row | {name: float(np.ravel(values)[place]) for name, values in metrics.items()})
    return rows


def _calls(
    batches: Iterator[dict[str, Any]], feed: Feed, first: int, total: int, steps: int
) -> Iterator[tuple[range, list[dict[str, Any]]]]:
    """Yields (steps, their batches) for every call of the training step.

    As many steps as are asked for go into a call, counted from the beginning of the training where all batches are of
    one size, otherwise from that of an epoch; wherever a training is gone on with. What does not fill a call, and a
    smaller batch, is left to calls of one step, which are another program to compile.
    """
    whole = feed.num_examples // feed.batch_size  # batches of an epoch that are of full size
    alike = whole == feed.steps_per_epoch
    number = first
    while number < total:
        position, end = (number, total) if alike else (number % feed.steps_per_epoch, whole)
        count = steps if position % steps == 0 and position + steps <= end else 1
        yield range(number, number + count), list(itertools.islice(batches, count))
        number += count


def _check_finite(stage, rows, feed, writer, done, state) -> None:
    """Stops a training that has diverged, at the step where it did; leaves everything to look at."""
    for place, row in enumerate(rows):
        bad = sorted((name for name in row if not math.isfinite(row[name])), key=lambda name: name != "loss")
        if not bad:
            continue
        writer.write_metrics(rows[:place])
        indices = feed.indices(row["step"] - 1).tolist()
        shown = {name: value if math.isfinite(value) else str(value) for name, value in row.items()}
        report = {"stage": stage, **shown, "indices": indices, "state_after_step": done}
        raise Diverged(
            f"{stage}: the {bad[0].replace('_', ' ')} is {row[bad[0]]} at step {row['step']} (epoch {row['epoch']}, "
            f"learning rate {row['learning_rate']:.3g}, images {_some(indices)}): a lower learning rate may help"
            f"{writer.leave(done, state, report)}"
        )


def _some(indices: list[int]) -> str:
    return ", ".join(map(str, indices[:_NAMED])) + (f" and {len(indices) - _NAMED} more" if indices[_NAMED:] else "")
