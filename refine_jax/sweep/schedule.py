"""The order in which tasks are done: none before its victim, and as many at once as there is room for."""

import dataclasses
import logging
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from refine_jax import ending
from refine_jax.errors import StorageError
from refine_jax.sweep import state
from refine_jax.sweep.plan import Task
from refine_jax.training.interruption import Interrupted

logger = logging.getLogger(__name__)

_PAUSE = 0.2  # seconds between two looks at what is running


class Job(Protocol):
    """A task that was started."""

    def poll(self) -> int | None:
        """Returns its exit status, None as long as it is running."""

    def stop(self) -> None:
        """Asks it to stop, as Ctrl-C does."""

    def wait(self) -> None:
        """Waits for its end, after `stop`."""


@dataclasses.dataclass(frozen=True)
class Ended:
    """A job that was done where it was started."""

    status: int

    def poll(self) -> int:
        """Returns the exit status."""
        return self.status

    def stop(self) -> None:
        """Does nothing."""

    def wait(self) -> None:
        """Does nothing."""


def go_through(tasks: Iterable[Task], start: Callable[[Task], Job], limit: int | None) -> None:
    """Does all tasks that are not done and have not failed; what fails does not hold up the others.

    Args:
        tasks: Victims before the runs that need them.
        start: Starts one.
        limit: How many run at once; None: as many as there are.

    Raises:
        Interrupted: One of them was stopped; the others were stopped then too.
        StorageError: One of them could not write; likewise.
    """
    tasks = list(tasks)
    unneeded = state.unneeded(tasks)
    waiting = [task for task in tasks if task not in unneeded and state.state_of(task).kind in ("waiting", "begun")]
    total, number, running = len(waiting), 0, dict[Task, Job]()
    try:
        while waiting or running:
            for task in list(waiting):
                if limit is not None and len(running) >= limit:
                    break
                fate = _fate(task, waiting, running)
                if fate == "wait":
                    continue
                waiting.remove(task)
                number += 1
                if fate == "leave":
                    logger.warning("[%d/%d] %s is left out: its victim is not there", number, total, task.name)
                    continue
                logger.info("[%d/%d] %s", number, total, task.name)
                running[task] = start(task)
            for task, job in list(running.items()):
                status = job.poll()
                if status is not None:
                    del running[task]
                    _note_end(task, status)
            if running:
                time.sleep(_PAUSE)
    except BaseException:
        for job in running.values():
            job.stop()
        for job in running.values():
            job.wait()
        raise


def _fate(task: Task, waiting, running) -> str:
    """Returns whether a task is to 'start', has to 'wait' for its victim, or to 'leave' because there will be none."""
    victim = task.victim
    if victim is None or state.is_done(victim):
        return "start"
    return "wait" if victim in waiting or victim in running else "leave"


def _note_end(task: Task, status: int) -> None:
    """Says what a task has come to; raises where no other could do better.

    What ends with `ending.STATUS_ERROR` and has not failed, another process is at work on; it has been said.
    """
    if status == ending.STATUS_INTERRUPTED:
        raise Interrupted(f"{task.name} was stopped")
    if status == ending.STATUS_STORAGE:
        raise StorageError(f"{task.name} could not be written; see what it said")
    if status == 0:
        logger.info("%s: done", task.name)
    elif status not in (ending.STATUS_ERROR, ending.STATUS_BUG) and state.state_of(task).kind != "failed":
        state.note_failure(task, f"it ended with status {status}" + (", a signal" if status < 0 else ""))
