"""Several processes, each with devices of its own: how they meet, agree, and leave the writing to the first."""

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from refine_jax.errors import RefineError, SettingError

# A process that is done waits for the others, the first of which measures what they have trained.
_PATIENCE_SECONDS = 24 * 3600
# After which silence a process counts as dead, which ends the others.
_HEARTBEAT_SECONDS = 60


def connect(coordinator: str | None, count: int | None, index: int | None) -> None:
    """Joins the processes of a run; before anything is computed. Alone, a process needs nobody to join.

    Args:
        coordinator: HOST:PORT of the first process. None, as `count` and `index`: what SLURM or Open MPI say.
        count: Of processes.
        index: Of this one, from 0.

    Raises:
        SettingError: Some of the three are given, and not all; or one cannot be.
        RefineError: The others did not come.
    """
    given = {"coordinator": coordinator, "processes": count, "process": index}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        if _launched() < 2:
            return
    elif missing:
        raise SettingError(missing[0], None, "given together with " + " and ".join({*given} - {missing[0]}))
    elif ":" not in (coordinator or ""):
        raise SettingError("coordinator", coordinator, "HOST:PORT of the first process")
    elif not count or count < 1:
        raise SettingError("processes", count, "1 or more")
    elif index is None or not 0 <= index < count:
        raise SettingError("process", index, f"0 to {count - 1}")
    try:
        jax.distributed.initialize(
            coordinator,
            count,
            index,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_PATIENCE_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        raise RefineError(f"the processes of this run did not meet: {str(error).partition(chr(10))[0]}") from error
    wait_for_all("all are here")  # which also opens what they will talk through, while none is held up by anything


def _launched() -> int:
    """How many processes SLURM or Open MPI have started together with this one."""
    return max(int(os.environ.get(name) or 1) for name in ("OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"))


def is_first() -> bool:
    """Returns whether this is the process that writes and speaks."""
    return jax.process_index() == 0


def agreed(*flags: bool) -> tuple[bool, ...]:
    """Returns of each flag whether any process has it set; all processes have to ask at the same place."""
    if jax.process_count() == 1:
        return flags
    return tuple(multihost_utils.process_allgather(np.array(flags)).any(axis=0).tolist())


def wait_for_all(where: str) -> None:
    """Waits until all processes have come to the same place, since some means of communication soon give up."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


@contextlib.contextmanager
def own_workdir(workdir: str | os.PathLike) -> Iterator[str | os.PathLike]:
    """Gives each process a working directory to write to: the first the one that is named, the others a copy for now.

    So all find the same outcomes and checkpoints to go on from, and what the others leave is gone in the end. What
    the first has written by itself, as checkpoints are, the others find in the copy that they are given the next time.

    Args:
        workdir: Where all processes can read it.
    """
    if jax.process_count() == 1:
        yield workdir
        return
    wait_for_all("the working directory can be copied")
    with tempfile.TemporaryDirectory(prefix="refine_jax_") as folder:
        there = pathlib.Path(workdir).expanduser()
        own = workdir if is_first() else pathlib.Path(folder, "workdir")
        if not is_first() and there.is_dir():
            # The lock says who writes to the original, perhaps a process that was killed.
            shutil.copytree(there, own, ignore=shutil.ignore_patterns("lock"))
        wait_for_all("the working directory is as it was found")
        yield own


def leave_at_once(status: int) -> None:
    """Ends a process whose run has failed, without waiting for the others, which end since it is gone."""
    if jax.process_count() > 1:
        os._exit(status)
