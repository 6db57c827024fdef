"""Where a training leaves its traces, and how it is gone on with from them."""

import dataclasses
import logging
import math
import pathlib
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from refine_jax.errors import WorkdirError
from refine_jax.files import write_json
from refine_jax.training.checkpoints import Checkpoints
from refine_jax.training.events import FOLDER, EventLog
from refine_jax.training.log import MetricsLog
from refine_jax.training.state import TrainState

logger = logging.getLogger(__name__)

# Where a training that cannot go on leaves its state, beside its checkpoints.
DIVERGED = "diverged"


@dataclasses.dataclass(frozen=True)
class Journal:
    """Where a training leaves its traces.

    Attributes:
        checkpoints: Folder of the checkpoints.
        metrics: The metrics.jsonl.
        identity: JSON values kept with each checkpoint; one with others is not gone on from.
        log_every: Steps between two rows of metrics.jsonl.
        checkpoint_minutes: Between two checkpoints, at most.
        checkpoint_steps: Between two checkpoints, at most; None: whatever the minutes give.
        keep_checkpoints: How many of the newest checkpoints are kept; the best is kept beside them.
        tensorboard: Whether event files are written beside the metrics.jsonl.
    """

    checkpoints: pathlib.Path
    metrics: pathlib.Path
    identity: dict[str, Any]
    log_every: int
    checkpoint_minutes: float
    checkpoint_steps: int | None = None
    keep_checkpoints: int = 2
    tensorboard: bool = False


class Writer:
    """Writes rows and checkpoints as a journal asks for.

    Args:
        journal: Where, and how often.
        checkpoints: Those of the journal, opened.
        metrics: Likewise.
        kept: Arrays that are kept in every checkpoint beside the state.
        seconds: Spent training by earlier runs.
        step: Steps done by them.
        events: Event files, where they are asked for.
    """

    def __init__(
        self,
        journal: Journal,
        checkpoints: Checkpoints,
        metrics: MetricsLog,
        kept: Mapping[str, Any],
        seconds: float,
        step: int,
        events: EventLog | None = None,
    ):
        self._events = events
        self.log_every, self.seconds = journal.log_every, seconds
        self._journal, self._checkpoints, self._metrics, self._kept = journal, checkpoints, metrics, kept
        self._saved_at, self._saved_step = time.monotonic(), step
        self._losses: list[float] = []  # of the steps since the last checkpoint

    def has_saved(self, step: int) -> bool:
        """Returns whether there is a checkpoint after so many steps, or nothing to save."""
        return step == self._saved_step

    def is_due(self, step: int) -> bool:
        """Returns whether it is time for a checkpoint after so many steps."""
        every = self._journal.checkpoint_steps
        if every and step // every > self._saved_step // every:
            return True
        return time.monotonic() - self._saved_at >= 60 * self._journal.checkpoint_minutes

    def write_metrics(self, rows: Sequence[dict[str, Any]]) -> None:
        """Appends the rows that are asked for, of one a step."""
        self._losses += [row["loss"] for row in rows]
        chosen = [row for row in rows if row["step"] % self.log_every == 0 or row["step"] == 1]
        self._metrics.append(chosen)
        if self._events is not None:
            self._events.append(chosen)

    def save(self, step: int, state: TrainState, seconds: float) -> None:
        """Starts to write a checkpoint.

        Args:
            step: Steps done.
            state: After them.
            seconds: That this run has spent training.
        """
        meta = {"identity": self._journal.identity, "seconds": self.seconds + seconds}
        # Of the steps that led to it: what is the best is not chosen by looking at anything else.
        loss = statistics.fmean(self._losses) if self._losses else math.inf
        self._checkpoints.save(step, {**vars(state), **self._kept}, meta, loss)
        self._losses.clear()
        self._saved_step = step
        self._saved_at = time.monotonic()

    def leave(self, step: int, state: TrainState, report: Mapping[str, Any]) -> str:
        """Writes what a training that cannot go on has come to, beside the checkpoints: none of it is gone on from.

        Args:
            step: Steps done.
            state: After them.
            report: JSON values.

        Returns:
            Where it was written, as the end of a sentence.
        """
        folder = self._journal.checkpoints.parent / DIVERGED
        shutil.rmtree(folder, ignore_errors=True)
        with Checkpoints(folder) as left:
            left.save(step, {**vars(state), **self._kept}, {"identity": self._journal.identity})
        write_json(folder / "report.json", report)
        return f"; the state after step {step} and the whole batch are in {folder}"

    def close(self) -> None:
        """Ends the event files."""
        if self._events is not None:
            self._events.close()

    def where_saved(self) -> str:
        """Returns what a person who has stopped the training wants to know."""
        return f"saved in {self._journal.checkpoints}; the same command goes on from there"


class Unwritten:
    """Stands in for a `Writer` where there is no journal."""

    seconds = 0.0

    def has_saved(self, step: int) -> bool:
        """Always: there is nothing to be saved in."""
        return True

    def is_due(self, step: int) -> bool:
        """Never."""
        return False

    def write_metrics(self, rows: Sequence[dict[str, Any]]) -> None:
        """Does nothing."""

    def save(self, step: int, state: TrainState, seconds: float) -> None:
        """Does nothing."""

    def leave(self, step: int, state: TrainState, report: Mapping[str, Any]) -> str:
        """Does nothing."""
        return ""

    def where_saved(self) -> str:
        """Returns what a person who has stopped the training wants to know."""
        return "nothing was saved"


def resume(
    stage: str, state: TrainState, journal: Journal, checkpoints: Checkpoints, kept: Mapping[str, Any]
) -> tuple[TrainState, Writer]:
    """Takes a training up where its last run has left it.

    Args:
        stage: Name of the training.
        state: At step 0; stays as it is where there is no checkpoint.
        journal: Of the training.
        checkpoints: Those of the journal, opened.
        kept: Arrays that every checkpoint has beside the state.

    Returns:
        (the state to go on from, the writer of what follows).

    Raises:
        WorkdirError: A checkpoint has another identity, or other arrays than `kept`, or none is whole.
    """
    seconds = 0.0
    restored = checkpoints.restore_newest_whole({**vars(state), **kept})
    remedy = f"delete {journal.checkpoints.parent} to train again"
    if restored is not None:
        tree, meta = restored
        if meta["identity"] != journal.identity:
            raise WorkdirError(
                f"{journal.checkpoints} is of {meta['identity']}, this run of {journal.identity}: {remedy}"
            )
        for name, value in kept.items():
            if not np.array_equal(tree.pop(name), value):
                raise WorkdirError(f"{journal.checkpoints}: the {name} there is not the one of this run: {remedy}")
        state, seconds = dataclasses.replace(state, **tree), meta["seconds"]
        logger.info("%s: goes on from step %d of %s", stage, state.step, journal.checkpoints)
    step = int(state.step)
    metrics = MetricsLog(journal.metrics, stage, step)
    events = EventLog(journal.metrics.parent / FOLDER / stage, step) if journal.tensorboard else None
    return state, Writer(journal, checkpoints, metrics, kept, seconds, step, events)
