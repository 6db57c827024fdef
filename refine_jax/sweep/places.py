"""Where the tasks of a sweep are done: here, in processes of this machine, or on a cluster."""

import dataclasses
import logging
import os
import pathlib
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from refine_jax import ending
from refine_jax.errors import RefineError, SettingError, choose
from refine_jax.sweep import state
from refine_jax.sweep.plan import Task
from refine_jax.sweep.schedule import Ended, Job

logger = logging.getLogger(__name__)

CLUSTERS = ("slurm", "local")
_DAY = 24 * 60  # minutes


def here(*, overwrite: bool) -> Callable[[Task], Job]:
    """Returns what does a task in this process, and is back when it is done."""
    return lambda task: Ended(state.attempt(task, overwrite=overwrite))


def processes(command: Sequence[str], count: int, logs: pathlib.Path) -> Callable[[Task], Job]:
    """Returns what starts a task as a process of its own.

    The GPUs that there are, else the cores, are shared out evenly.

    Args:
        command: That does a task, once its name is appended.
        count: How many run at once.
        logs: Folder for what they say.

    Raises:
        SettingError: There are fewer GPUs than processes.
    """
    gpus = visible_gpus()
    if gpus and count > len(gpus):
        raise SettingError("--processes", count, f"1 to {len(gpus)}, the number of GPUs here")
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    places = range(count)
    taken: dict[int, subprocess.Popen] = {}

    def start(task: Task) -> Job:
        place = next(i for i in places if i not in taken or taken[i].poll() is not None)
        environment = dict(os.environ)
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(share(gpus, count, place))
        log = logs / f"{task.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            process = subprocess.Popen([*command, task.name], env=environment, stdout=file, stderr=file)
        if not gpus and len(cores) >= count > 1:
            os.sched_setaffinity(process.pid, share(cores, count, place))
        taken[place] = process
        return _Process(process)

    return start


@dataclasses.dataclass(frozen=True)
class _Process:
    process: subprocess.Popen

    def poll(self) -> int | None:
        return self.process.poll()

    def stop(self) -> None:
        self.process.terminate()

    def wait(self) -> None:
        self.process.wait()


def visible_gpus(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Returns the numbers of NVIDIA's GPUs that this process may use, without opening them."""
    said = environment.get("CUDA_VISIBLE_DEVICES")
    if said is not None:
        return [gpu for gpu in said.split(",") if gpu]
    return [str(i) for i in range(len(list(pathlib.Path("/proc/driver/nvidia/gpus").glob("*"))))]


def share(things: Sequence[Any], count: int, place: int) -> list[Any]:
    """Returns the part of one of `count` places, all parts as equal as can be."""
    return [thing for i, thing in enumerate(things) if i * count // len(things) == place]


def cluster(
    name: str, work: Callable[[str], int], logs: pathlib.Path, options: Sequence[str]
) -> Callable[[Task], Job]:
    """Returns what hands a task to submitit.

    Args:
        name: 'slurm', or 'local' for processes of this machine, by submitit too.
        work: Does the task of a name, over there, and returns its exit status; has to be picklable.
        logs: Folder for what they say, on a disk that all machines share.
        options: 'NAME=VALUE' each, parameters of submitit: timeout_min, gpus_per_node, slurm_partition, ...

    Raises:
        RefineError: submitit is not installed, or will not take an option.
    """
    choose("--cluster", name, CLUSTERS)
    try:
        import submitit
    except ImportError as error:
        raise RefineError("--cluster needs submitit: pip install 'refine-jax[sweep]'") from error
    given: dict[str, Any] = {"timeout_min": _DAY}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals:
            raise SettingError("--submit", option, "NAME=VALUE, a parameter of submitit's executor")
        given[key] = int(value) if value.lstrip("-").isdigit() else value
    try:
        executor = submitit.AutoExecutor(folder=logs / "%j", cluster=name)
        executor.update_parameters(name="sweep", **given)
    except (RuntimeError, NameError, TypeError, ValueError, AssertionError) as error:
        raise RefineError(f"--cluster={name}: {error}") from error

    def start(task: Task) -> Job:
        job = executor.submit(_Work(work), task.name)
        logger.info("%s: job %s, in %s", task.name, job.job_id, job.paths.folder)
        return _Submitted(job, task, name == "local")

    return start


@dataclasses.dataclass(frozen=True)
class _Work:
    """What submitit calls, and asks for what to do where the time is up: the same once more, which goes on."""

    work: Callable[[str], int]

    def __call__(self, name: str) -> int:
        return self.work(name)

    def checkpoint(self, name: str) -> Any:
        import submitit

        return submitit.helpers.DelayedSubmission(self, name)


@dataclasses.dataclass(frozen=True)
class _Submitted:
    job: Any
    task: Task
    is_local: bool

    def poll(self) -> int | None:
        if not self.job.done():
            return None
        error = self.job.exception()
        if error is None:
            return self.job.result()
        if state.state_of(self.task).kind != "failed":
            state.note_failure(self.task, f"job {self.job.job_id}: {error}")
        return ending.STATUS_BUG

    def stop(self) -> None:
        self.job.cancel(check=False)

    def wait(self) -> None:
        if self.is_local:  # SLURM is asked once a minute, and has been told
            self.job.wait()
