"""Runs that differ in nothing but the seed, and share a victim, have their U-Nets trained at once.

That leaves in their working directories what each would have left by itself, and each is then done as any other run:
it finds a training of REFINE that is at its end.
"""

import contextlib
import glob
import json
import logging
import pathlib
import shutil
from collections.abc import Callable, Sequence

from refine_jax import ending, pipeline
from refine_jax.defenses import refine_seeds
from refine_jax.defenses.registry import clean_images, settings_of
from refine_jax.errors import StorageError
from refine_jax.files import hash_json
from refine_jax.opening import Run, open_run
from refine_jax.outcomes import checkpoints_of, load_victim
from refine_jax.sweep import state
from refine_jax.sweep.plan import Plan, Task, label
from refine_jax.sweep.schedule import Ended, Job
from refine_jax.training.interruption import Interrupted

logger = logging.getLogger(__name__)

NAME = "refine"


def here(plan: Plan, folder: pathlib.Path, *, overwrite: bool) -> Callable[[Task], Job]:
    """Returns what does a task in this process, before the first of a group the trainings of all of it.

    Args:
        plan: Of the sweep.
        folder: Where trainings of several seeds are kept as long as they last.
        overwrite: Whether stages that were done from other settings are deleted.
    """
    groups = groups_of(plan.runs)

    def start(task: Task) -> Job:
        for group in [group for group in groups if task in group]:
            groups.remove(group)
            _try(group, folder, overwrite=overwrite)
        return Ended(state.attempt(task, overwrite=overwrite))

    return start


def groups_of(runs: Sequence[Task]) -> list[list[Task]]:
    """Returns the runs whose U-Nets can be trained at once: those with REFINE, but for the seed of equal settings.

    A victim that depends on the seed is none that they share.
    """
    groups: dict[str, list[Task]] = {}
    for run in runs:
        shares = run.settings["victim"].get("workdir") or "checkpoint" in run.settings["victim"]
        if shares and NAME in run.settings["defense"]["names"]:
            groups.setdefault(json.dumps({**run.settings, "seed": None}), []).append(run)
    return [group for group in groups.values() if len(group) > 1]


def _try(group: Sequence[Task], folder: pathlib.Path, *, overwrite: bool) -> None:
    """Trains what it can; where it cannot, as the memory does not suffice or a seed diverges, each goes by itself."""
    waiting = [task for task in group if state.state_of(task).kind in ("waiting", "begun")]
    try:
        if len(waiting) > 1:
            _train(waiting, folder, overwrite=overwrite)
    except (Interrupted, StorageError):
        raise
    except Exception as error:
        said, status = ending.explain(error, folder)
        if status == ending.STATUS_STORAGE:
            raise StorageError(said.removeprefix("error: ")) from error
        logger.warning("%s and others are trained one by one, since together: %s", group[0].name, said)


def _train(group: Sequence[Task], folder: pathlib.Path, *, overwrite: bool) -> None:
    with contextlib.ExitStack() as opened:
        runs = []
        for task in group:
            run, attack = opened.enter_context(open_run(task.config, str(task.workdir), overwrite=overwrite))
            pipeline.run_stages(run, attack, ("victim",))  # one that is imported
            runs.append((task, run))
        if not _place(folder, group, runs[0][1]).exists():  # else it is gone on with
            runs = [(task, run) for task, run in runs if not checkpoints_of(run.defenses[NAME]).exists()]
        if len(runs) < 2:
            return
        first = runs[0][1]
        settings, classes = first.settings["defense"], first.dataset.num_classes
        identity = {"victim_sha256": first.victim.require("victim")["victim_sha256"]}
        for _, run in runs:
            run.defenses[NAME].begin()
        journals = [pipeline.make_journal(run, run.defenses[NAME].folder, identity) for _, run in runs]
        tasks = [task for task, _ in runs]
        logger.info("%d seeds together: %s", len(tasks), _name(tasks))
        place = _place(folder, tasks, first)
        _forget_others(place)
        _, classifier = load_victim(first)
        refine_seeds.fit_seeds(
            classifier,
            clean_images(NAME, settings, first.dataset.train, classes),
            settings_of(NAME, settings),
            [task.seed for task in tasks],
            classes,
            journals,
            first.execution,
            folder=place,
        )
    with contextlib.suppress(OSError):  # another group's is in it
        folder.rmdir()


def _name(tasks: Sequence[Task]) -> str:
    return label({**tasks[0].values, "seed": tuple(task.seed for task in tasks)})


def _place(folder: pathlib.Path, tasks: Sequence[Task], first: Run) -> pathlib.Path:
    """Where a group's training is kept: with a hash of all that it depends on, of which what varies is but a part."""
    made_from = {**first.defenses[NAME].settings, "seed": None}
    return folder / f"{_name(tasks)}-{hash_json(made_from)[:12]}"


def _forget_others(place: pathlib.Path) -> None:
    """Deletes what the same group has left with other settings, or in the first versions, which named no hash."""
    name = place.name.rpartition("-")[0]
    for other in {place.with_name(name), *place.parent.glob(f"{glob.escape(name)}-*")} - {place}:
        shutil.rmtree(other, ignore_errors=True)
