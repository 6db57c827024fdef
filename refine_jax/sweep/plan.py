"""What a sweep consists of: its runs, the victims that they share, and what each is called."""

import copy
import dataclasses
import itertools
import json
import pathlib
import re
import runpy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ml_collections

from refine_jax import fields, opening, settings
from refine_jax.errors import RefineError, SettingError, choose

# Sections of a configuration that a victim depends on; what it is called is made of their fields.
_OF_THE_VICTIM = ("dataset", "attack", "victim", "precision")
RUN_STAGES, VICTIM_STAGES = ("victim", "defend", "evaluate"), ("victim",)

Axes = Mapping[str | tuple[str, ...], Sequence[Any]]


@dataclasses.dataclass(frozen=True, init=False)
class Sweep:
    """Runs that differ in some fields; what get_sweep() of a file of configs/sweeps/ returns.

    Args:
        base: What is common to all, from a get_config().
        grids: Each maps dotted fields to the values that they take; every combination is a run. A tuple of fields,
            with tuples of values, changes together. Several grids are put together; what is in two of them is one run.
        seeds: Every run is made with each of these.
        one_victim: Whether the first seed's victim is used for all seeds, so that they tell of the defense alone.
    """

    base: ml_collections.ConfigDict
    grids: tuple[Axes, ...]
    seeds: tuple[int, ...]
    one_victim: bool

    def __init__(
        self,
        base: ml_collections.ConfigDict,
        *grids: Axes,
        seeds: Sequence[int] = (0, 1, 2),
        one_victim: bool = False,
    ):
        object.__setattr__(self, "base", base)
        object.__setattr__(self, "grids", grids or ({},))
        object.__setattr__(self, "seeds", tuple(seeds))
        object.__setattr__(self, "one_victim", one_victim)


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A run of a sweep, or the training of a victim that some of its runs share.

    Attributes:
        name: Of its working directory, below the sweep's.
        config: As `pipeline.run` takes it.
        settings: What `settings.complete` makes of it here.
        workdir: Its working directory.
        stages: Of the pipeline.
        values: Of the fields that vary in this sweep, without the seed.
        seed: Likewise.
        victim: The task that has to be done before, where there is one.
    """

    name: str
    config: ml_collections.ConfigDict
    settings: Mapping[str, Any]
    workdir: pathlib.Path
    stages: tuple[str, ...]
    values: Mapping[str, Any]
    seed: int
    victim: "Task | None" = None

    @property
    def is_run(self) -> bool:
        """Whether it is one of the runs, which are measured."""
        return self.stages == RUN_STAGES


@dataclasses.dataclass(frozen=True)
class Plan:
    """All tasks of a sweep.

    Attributes:
        victims: Trained for several runs at once.
        runs: In the order of grids and seeds.
    """

    victims: tuple[Task, ...]
    runs: tuple[Task, ...]

    @property
    def tasks(self) -> list[Task]:
        """All of them, each victim right before the first run that needs it."""
        ordered: dict[Task, None] = {}
        for run in self.runs:
            if run.victim is not None:
                ordered[run.victim] = None
            ordered[run] = None
        return list(ordered)


def base(file: str, variant: str, configs: Mapping[str, str]) -> ml_collections.ConfigDict:
    """Returns what a sweep varies, from another file of configs/.

    Args:
        file: The sweep's, its __file__.
        variant: That was asked for.
        configs: Variant to 'NAME.py' or 'NAME.py:VARIANT', in the folder above the sweep's.

    Raises:
        SettingError: There is no such variant.
    """
    if variant not in configs:
        shown = f"{file}:{variant}"
        raise SettingError("config", shown, ", ".join(f"{file}:{name}".rstrip(":") for name in configs))
    name, _, of = configs[variant].partition(":")
    get_config = runpy.run_path(str(pathlib.Path(file).parents[1] / name))["get_config"]
    return get_config(of) if of else get_config()


def expand(sweep: Sweep, folder: pathlib.Path) -> Plan:
    """Returns all runs of a sweep, checked, with the victims that they share.

    A victim that does not depend on what varies is trained once, for as many runs as want it. Where victims are
    imported, or taken from another run, there is nothing to share.

    Args:
        sweep: From a get_sweep().
        folder: Where everything is left.

    Raises:
        RefineError: A field is unknown, or a value of one of the runs cannot work; which.
    """
    if not sweep.seeds:
        raise SettingError("seeds", sweep.seeds, "one or more seeds")
    varied = list(dict.fromkeys(field for grid in sweep.grids for axis in grid for field in _fields(axis)))
    for field in varied:
        fields.check_field(field, "a value of the sweep")
        if field in ("seed", "victim.workdir"):
            raise SettingError(field, "an axis of the sweep", "other fields; seeds are given as seeds=(0, 1, 2)")
    for grid in sweep.grids:
        for axis, taken in grid.items():
            if not len(taken):
                raise SettingError(", ".join(_fields(axis)), taken, "one or more values in a sweep")
    victims: dict[str, Task] = {}
    runs: dict[str, Task] = {}
    for grid, seed in itertools.product(sweep.grids, sweep.seeds):
        for changes in _combinations(grid):
            run = _make_run(sweep, folder, varied, changes, seed, victims)
            if runs.setdefault(run.name, run).settings != run.settings:
                _refuse_name(run)
    # The seed comes last in the order too.
    order = [tuple(run.values.items()) for run in runs.values()]
    ordered = sorted(runs.values(), key=lambda run: order.index(tuple(run.values.items())))
    return Plan(tuple(victims.values()), tuple(ordered))


def check_images(plan: Plan, *, here: bool = True) -> None:
    """Refuses what is impossible with the images that the runs are on; each data set is read once.

    Args:
        plan: Of the sweep.
        here: Whether the runs are done by this process; else nothing is known of the devices that they will have.

    Raises:
        RefineError: Of which run, and what.
    """
    read: dict[str, Any] = {}
    for run in plan.runs:
        resolved = run.settings
        if "checkpoint" in resolved["victim"]:
            continue  # how many classes there are is said by the checkpoint
        key = json.dumps(resolved["dataset"])
        if key not in read:
            read[key] = opening.load_dataset(resolved)
        if not here:
            resolved = {**resolved, "run": {**resolved["run"], "devices": 1}}
        try:
            opening.check(resolved, read[key])
        except RefineError as error:
            raise RefineError(f"{run.name}: {error}") from error


def apply(config: ml_collections.ConfigDict, changes: Mapping[str, Any]) -> None:
    """Sets dotted fields.

    Raises:
        SettingError: A field is unknown, or the value is of another type.
    """
    for field, value in changes.items():
        fields.check_field(field, value)
        *sections, name = field.split(".")
        section = config
        for part in sections:
            section = section[part]
        try:
            section[name] = value
        except (TypeError, ValueError) as error:
            raise SettingError(field, value, fields.KINDS.get(fields.type_of(field), "another type")) from error


def label(values: Mapping[str, Any]) -> str:
    """Returns fields and their values as the name of a folder, the same for the same values."""
    shown = lambda value: "+".join(map(str, value)) if isinstance(value, tuple) else str(value)  # noqa: E731
    return ",".join(f"{field}={re.sub(r'[^A-Za-z0-9.+-]', '_', shown(value))}" for field, value in values.items())


def _make_run(sweep, folder, varied, changes, seed, victims) -> Task:
    """Returns a run; puts its victim into `victims` where that is not there yet."""
    config = copy.deepcopy(sweep.base)
    apply(config, {**changes, "seed": seed})
    values = {field: _get(config, field) for field in varied}
    name = f"runs/{label({**values, 'seed': seed})}"
    resolved = _complete(name, config)
    if "checkpoint" in resolved["victim"] or resolved["victim"]["workdir"]:
        return Task(name, config, resolved, folder / name, RUN_STAGES, values, seed)
    of_victim = sweep.seeds[0] if sweep.one_victim else seed
    made_from = {section: resolved[section] for section in ("dataset", "attack", "victim")}
    key = json.dumps([made_from, config.precision, of_victim])
    if key not in victims:
        chosen = {field: value for field, value in values.items() if field.startswith(_OF_THE_VICTIM)}
        victim_name = f"victims/{label({**chosen, 'seed': of_victim})}"
        alone = copy.deepcopy(sweep.base)
        apply(alone, {**chosen, "seed": of_victim})
        given = (alone, _complete(victim_name, alone), folder / victim_name)
        victims[key] = Task(victim_name, *given, VICTIM_STAGES, chosen, of_victim)
        if victim_name in [victim.name for victim in victims.values() if victim is not victims[key]]:
            _refuse_name(victims[key])
    config.victim.workdir = resolved["victim"]["workdir"] = str(victims[key].workdir)
    return Task(name, config, resolved, folder / name, RUN_STAGES, values, seed, victims[key])


def _refuse_name(task: Task) -> None:
    """Refuses a task whose directory is that of another one: of a value, not every character can stand in a name."""
    allowed = f"values that differ in letters, digits, '.', '+' or '-': two of them would be left in {task.name}"
    raise SettingError(", ".join(task.values) or "seeds", tuple(task.values.values()), allowed)


def _complete(name: str, config: ml_collections.ConfigDict) -> dict[str, Any]:
    try:
        return settings.complete(config)
    except RefineError as error:
        raise RefineError(f"{name}: {error}") from error


def _combinations(grid: Axes) -> Iterable[dict[str, Any]]:
    """Yields fields and values of every combination of a grid."""
    for chosen in itertools.product(*grid.values()):
        changes: dict[str, Any] = {}
        for axis, value in zip(grid, chosen, strict=True):
            names = _fields(axis)
            together = (value,) if isinstance(axis, str) else value
            if len(together) != len(names):
                raise SettingError(", ".join(names), value, f"{len(names)} values, one of each field")
            changes |= dict(zip(names, together, strict=True))
        yield changes


def _fields(axis: str | tuple[str, ...]) -> tuple[str, ...]:
    return (axis,) if isinstance(axis, str) else axis


def _get(config: ml_collections.ConfigDict, field: str) -> Any:
    value: Any = config
    for part in field.split("."):
        value = value[part]
    return value


def find(plan: Plan, name: str) -> Task:
    """Returns the task of this name.

    Raises:
        SettingError: There is none.
    """
    return {task.name: task for task in plan.tasks}[choose("--run", name, [task.name for task in plan.tasks])]
