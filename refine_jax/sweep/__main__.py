"""Runs a sweep: many variations of one configuration, and a table of all.

    python -m refine_jax.sweep --config=configs/sweeps/NAME.py --workdir=DIR [--config.FIELD=VALUE ...]

Each run is an ordinary working directory below DIR. The same command goes on where it was stopped.
"""

import argparse
import functools
import logging
import pathlib
import runpy
import sys
from collections.abc import Sequence

import jax

from refine_jax import command_line, ending
from refine_jax.datasets import cache
from refine_jax.errors import RefineError, SettingError
from refine_jax.files import write_json
from refine_jax.sweep import places, schedule, state, table, together
from refine_jax.sweep.plan import Plan, Sweep, apply, check_images, expand, find
from refine_jax.training import determinism
from refine_jax.training.compilation import keep_compiled
from refine_jax.training.interruption import Interrupted, ended_by_signals
from refine_jax.workdir import Workdir

logger = logging.getLogger("refine_jax.sweep")


def parser() -> argparse.ArgumentParser:
    """Returns what reads the command line; what it leaves over are fields of the configuration."""
    flags = argparse.ArgumentParser(
        "python -m refine_jax.sweep", description="Runs many variations of one configuration.", allow_abbrev=False
    )
    add = flags.add_argument
    add("--config", required=True, help="a file of configs/sweeps/, also NAME.py:VARIANT; --config.FIELD=VALUE")
    # No shell expands the ~ of --workdir=~/sweep.
    place = lambda text: pathlib.Path(text).expanduser()  # noqa: E731
    add("--workdir", required=True, type=place, help="where the runs, and the table of all, are left")
    add("--list", action="store_true", help="say what the runs are and how far they have come; run nothing")
    add("--table", action="store_true", help="write the table of what is done, and say what is not; run nothing")
    add("--retry", action="store_true", help="try again what has failed")
    add("--overwrite", action="store_true", help="delete what other settings have left in a run's directory")
    add("--run", metavar="NAME", help="do this one alone, of those that --list names, and its victim before it")
    add("--processes", type=int, help="how many run at once, each in a process of its own; else one, in this one")
    add("--cluster", choices=places.CLUSTERS, help="hand the runs to SLURM, or to processes here, through submitit")
    add("--together", action="store_true", help="train seeds at once that share a victim and all settings (REFINE)")
    add("--submit", action="append", default=[], metavar="NAME=VALUE", help="a parameter of submitit's executor")
    return flags


def main(argv: Sequence[str] | None = None) -> int:
    """Does what a command line asks for.

    Args:
        argv: Its arguments; None: those of this process.

    Returns:
        The exit status: 0 where everything is done, 2 where something has failed.

    Raises:
        RefineError: Something that the user can mend, before any work; or the sweep was stopped.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    given, rest = parser().parse_known_args(arguments)
    if given.processes is not None and given.processes < 1:
        raise SettingError("--processes", given.processes, "1 or more")
    if given.together and (given.processes or given.cluster or given.run):
        raise SettingError("--together", True, "nothing with --processes, --cluster or --run")
    if given.list or given.table or given.processes or given.cluster:
        jax.config.update("jax_platforms", "cpu")  # a device that is opened here is not there for the runs
    sweep = read_sweep(given.config)
    apply(sweep.base, dict(map(command_line.read_field, rest)))
    if sweep.base.run.deterministic:
        determinism.ask()
    plan = expand(sweep, given.workdir)
    if given.list:
        print(describe(plan))
        return 0
    if given.table:
        if not given.workdir.is_dir():
            raise SettingError("--workdir", str(given.workdir), "a directory with runs of this sweep")
        return _tell(plan, write_tables(plan, given.workdir))
    keep_compiled(cache.directory() / "compiled")
    if given.run:
        return _do_one(plan, given.run, overwrite=given.overwrite)
    check_images(plan, here=not (given.processes or given.cluster))
    Workdir(given.workdir).create()
    if given.retry:
        for task in plan.tasks:
            state.forget_failure(task)
    # What one of the processes, or jobs, is to do is the same command, for one run.
    own = [*_without_places(given), *rest]
    start, limit = places.here(overwrite=given.overwrite), 1
    if given.together:
        start = together.here(plan, given.workdir / "together", overwrite=given.overwrite)
    elif given.cluster:
        work = functools.partial(_do_elsewhere, own)
        start, limit = places.cluster(given.cluster, work, given.workdir / "logs", given.submit), given.processes
    elif given.processes:
        command = [sys.executable, "-m", "refine_jax.sweep", *own, "--run"]
        start, limit = places.processes(command, given.processes, given.workdir / "logs"), given.processes
    try:
        schedule.go_through(plan.tasks, start, limit)
    except (Interrupted, KeyboardInterrupt) as stopped:
        done = sum(state.is_done(run) for run in plan.runs)
        raise Interrupted(
            f"stopped; {done} of {len(plan.runs)} runs are done, and the same command goes on"
        ) from stopped
    finally:
        rows = write_tables(plan, given.workdir)
    return _tell(plan, rows)


def read_sweep(value: str) -> Sweep:
    """Returns what get_sweep() of a file gives.

    Args:
        value: PATH or PATH:VARIANT.

    Raises:
        RefineError: There is no such file, or it gives no sweep.
    """
    path = command_line.check_file(value, "get_sweep", "configs/sweeps")
    try:
        get_sweep = runpy.run_path(path).get("get_sweep")
        sweep = None if get_sweep is None else get_sweep(value.partition(":")[2])
    except RefineError:
        raise
    except Exception as error:
        raise command_line.explain(error, path, "sweep") from error
    if not isinstance(sweep, Sweep):
        found = "there is no get_sweep()" if get_sweep is None else "get_sweep() gives no refine_jax.sweep.Sweep"
        raise SettingError("config", value, f"a file as those of configs/sweeps/; in this one {found}")
    return sweep


def describe(plan: Plan) -> str:
    """Returns the tasks of a sweep and how far they have come, a line each."""
    lines, kinds = [], []
    unneeded = state.unneeded(plan.tasks)
    for task in plan.tasks:
        if task in unneeded:
            continue
        found = state.state_of(task)
        kinds.append(found.kind)
        reason = found.error.strip().splitlines()[-1:] if found.error else []
        lines.append(": ".join([f"{found.kind:8}{task.name}", *reason]))
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    return "\n".join([*lines, f"{len(plan.runs)} runs, {len(plan.victims)} shared victims: {counts}"])


def write_tables(plan: Plan, folder: pathlib.Path) -> list[dict]:
    """Writes table.md, table.csv and table.json of what is done; returns the rows."""
    rows = table.summarize([(run, state.measured(run)) for run in plan.runs])
    (folder / "table.md").write_text(table.markdown(rows))
    (folder / "table.csv").write_text(table.comma_separated(rows))
    write_json(folder / "table.json", {"schema": table.SCHEMA, "rows": rows})
    return rows


def _tell(plan: Plan, rows: list[dict]) -> int:
    """Prints the table, and says what is not done; returns the exit status."""
    print(table.markdown(rows))
    failed = [task for task in plan.tasks if state.state_of(task).kind == "failed"]
    unfinished = [run for run in plan.runs if not state.is_done(run)]
    if failed or unfinished:
        print(describe(plan), file=sys.stderr)
        tail = "--retry tries again" if failed else "the same command without --table goes on"
        print(f"error: {len(unfinished)} of {len(plan.runs)} runs are not done; {tail}", file=sys.stderr)
        return ending.STATUS_ERROR
    return 0


def _do_one(plan: Plan, name: str, *, overwrite: bool) -> int:
    """Does one task, and before it its victim; returns the exit status."""
    task = find(plan, name)
    if state.is_done(task):
        return 0
    for each in (task.victim, task):
        if each is not None and not state.is_done(each):
            status = state.attempt(each, overwrite=overwrite)
            if status:
                return status
    return 0


def _without_places(given: argparse.Namespace) -> list[str]:
    """The arguments again, without those that say where it is done."""
    return [f"--config={given.config}", f"--workdir={given.workdir}", *(["--overwrite"] if given.overwrite else [])]


def _do_elsewhere(arguments: Sequence[str], name: str) -> int:
    """Does one task in a process that submitit has started."""
    return ended([*arguments, f"--run={name}"])


def ended(argv: Sequence[str] | None = None) -> int:
    """Runs `main`; what a user can mend ends in one sentence, and in an exit status of its own."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    ending.quieten(logging.getLogger().handlers[0])
    logging.getLogger("refine_jax").setLevel(logging.INFO)
    try:
        with ended_by_signals():
            return main(argv)
    except Interrupted as stopped:
        said, status = str(stopped), ending.STATUS_INTERRUPTED
    except (Exception, KeyboardInterrupt) as error:
        said, status = ending.explain(error, None)
    print(said, file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(ended())
