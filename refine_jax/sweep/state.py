"""How far the tasks of a sweep have come, as their working directories say; and doing one of them."""

import dataclasses
import logging
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from refine_jax import ending, fields, pipeline
from refine_jax.defenses.registry import without_later
from refine_jax.errors import RefineError, StorageError, WorkdirError
from refine_jax.files import read_json, read_record, write_json
from refine_jax.lock import InUse
from refine_jax.report.table_files import warnings_without
from refine_jax.sweep import inputs
from refine_jax.sweep.plan import Task
from refine_jax.training.interruption import Interrupted
from refine_jax.workdir import Workdir

logger = logging.getLogger(__name__)

# What can be otherwise, and the outcome is the same one; what lies in dataset.root, `inputs` says.
_NO_DIFFERENCE = ("run.", "victim.workdir", "dataset.data_dir", "dataset.root", "dataset.test_root", "dataset.decoded")
# What of it lies in the user's own files, as `inputs.hashes` names it.
_SAID = {"dataset": "pictures", "victim": "weights in victim.checkpoint", "attack": "triggered pictures"}

Run = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class State:
    """How far a task has come.

    Attributes:
        kind: 'done', 'failed', 'begun' or 'waiting'.
        error: Why it failed; or why what is there does not count.
    """

    kind: str
    error: str = ""


def state_of(task: Task) -> State:
    """Returns how far a task has come; what is done with other settings is not."""
    if is_done(task):
        return State("done")
    file = _failure(task)
    if file.exists():
        try:
            return State("failed", str(read_json(file)["error"]))
        except (WorkdirError, KeyError, TypeError):
            return State("failed", f"{file} is damaged")
    begun = State("begun" if Workdir(task.workdir).settings.exists() else "waiting")
    if not _has_ended(task):
        return begun
    other = " and ".join(_SAID[name] for name in _of_other_files(task))
    remedy = "put back what was there, or --overwrite does it anew"
    return dataclasses.replace(begun, error=f"was done with other {other} than there are now: {remedy}")


def is_done(task: Task) -> bool:
    """Returns whether a task has come to its end, with the settings that it has now, and what lies in their files."""
    return _has_ended(task) and not _of_other_files(task)


def _has_ended(task: Task) -> bool:
    """Returns whether a task has come to its end, with the settings that it has now."""
    work = Workdir(task.workdir)
    if not task.is_run:
        stage = _read_stage(task)
        return bool(stage and stage["outcome"]) and _same(task, _read_settings(work), ("defense.",))
    results = read_results(task)
    return results is not None and _same(task, results["settings"])


def _of_other_files(task: Task) -> list[str]:
    """Returns what of the user's own has other contents now than what a task was done with, as keys of `_SAID`."""
    now = inputs.hashes(task.settings)
    if not now:
        return []
    if task.is_run:
        kept = (read_results(task) or {}).get("hashes", {})
    else:
        kept = {"dataset": (_read_stage(task) or {}).get("settings", {}).get("dataset", {}).get("sha256")}
    return [name for name, sha256 in now.items() if kept.get(name) != sha256]


def unneeded(tasks: Iterable[Task]) -> set[Task]:
    """Returns victims that are not there, whose runs are all done.

    Of a run that is done results.json is enough: it may have come from another machine, without its victim.
    """
    tasks = list(tasks)
    runs = [task for task in tasks if task.is_run]
    waited_for = {run.victim for run in runs if not is_done(run)}
    return {run.victim for run in runs if run.victim and run.victim not in waited_for and not is_done(run.victim)}


def read_results(task: Task) -> dict[str, Any] | None:
    """Returns what results.json of a run holds, None where it is not there or damaged."""
    return _read(Workdir(task.workdir).results)


def measured(task: Task) -> dict[str, Any] | None:
    """Returns what results.json of a run holds of its defenses, with the settings that it has now.

    Defenses can be there that this sweep does not ask for, and others not yet: their settings make no difference to
    what was measured of the rest.

    Returns:
        As `read_results`, without the defenses that are not asked for; None where none of them is there, or where the
        user's files hold something else now.
    """
    if (results := read_results(task)) is None or _of_other_files(task):
        return None
    kept = results["settings"]
    common = [name for name in task.settings["defense"]["names"] if name in results["defenses"]]
    own, kept = ({**of, "defense": _of_defenses(of["defense"], common)} for of in (task.settings, kept))
    if not common or not _same(dataclasses.replace(task, settings=own), kept):
        return None
    defenses = {name: results["defenses"][name] for name in common}
    return {**results, "defenses": defenses, "warnings": warnings_without(results, {*results["defenses"]} - {*common})}


def _of_defenses(section: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """Returns what the section 'defense' of settings says of some of its defenses."""
    others = {*section["names"]} - {*names}
    if "refine" in others:  # whose fields have no section of their own
        return {"names": names, **{name: section[name] for name in names}}
    return {**{field: value for field, value in section.items() if field not in others}, "names": names}


def attempt(task: Task, *, overwrite: bool = False, run: Run | None = None) -> int:
    """Does a task; what goes wrong is said, and kept in failed.json of its working directory.

    Args:
        task: Whose victim is there.
        overwrite: Whether stages that were done from other settings are deleted.
        run: What stands in for `pipeline.run`.

    Returns:
        The exit status that launch.py would end with.

    Raises:
        Interrupted: It was asked to stop; KeyboardInterrupt likewise, outside of a training.
        StorageError: Nothing can be written, so no other task could do better.
    """
    try:
        (run or pipeline.run)(task.config, str(task.workdir), task.stages, overwrite=overwrite)
    except (Interrupted, StorageError):
        raise
    except InUse as error:
        logger.warning("%s: %s", task.name, error)
        return ending.STATUS_ERROR
    except Exception as error:
        sentence, status = ending.explain(error, task.workdir)
        if status == ending.STATUS_STORAGE:
            raise StorageError(sentence.removeprefix("error: ")) from error
        note_failure(task, str(error) if isinstance(error, RefineError) else sentence)
        return status
    forget_failure(task)
    return 0


def note_failure(task: Task, error: str) -> None:
    """Writes down that a task has failed, so that it is not tried again before that is asked for."""
    logger.error("%s failed: %s", task.name, error)
    file = _failure(task)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, {"error": error, "time": time.strftime("%Y-%m-%d %H:%M:%S %z")})


def forget_failure(task: Task) -> None:
    """Lets a task that has failed be tried again."""
    _failure(task).unlink(missing_ok=True)


def _failure(task: Task) -> pathlib.Path:
    return task.workdir / "failed.json"


def _read(file: pathlib.Path) -> dict[str, Any] | None:
    try:
        return read_record(file, ()) if file.exists() else None
    except WorkdirError:
        return None


def _read_stage(task: Task) -> dict[str, Any] | None:
    """Returns the record of a victim, None where it is not there or damaged."""
    return _read(Workdir(task.workdir).victim / "stage.json")


def _read_settings(work: Workdir) -> Mapping[str, Any] | None:
    try:
        return read_json(work.settings)
    except WorkdirError:
        return None


def _same(task: Task, kept: Mapping[str, Any] | None, more: tuple[str, ...] = ()) -> bool:
    """Returns whether a task's settings are those that were kept, up to what makes no difference to its outcome."""
    if kept is None:
        return False
    own = dict(task.settings)
    if task.config.precision is None:  # open: what the machine that did it has filled in
        own["precision"] = kept.get("precision")
    changes = fields.differences(*({**of, "defense": _unordered(of.get("defense", {}))} for of in (kept, own)))
    return all(change.startswith((*_NO_DIFFERENCE, *more)) for change in changes)


def _unordered(section: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the section 'defense' of settings says, in whatever order the defenses are named."""
    own = without_later(section)
    return {**own, "names": sorted(own["names"])} if "names" in own else own
