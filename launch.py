"""Runs an experiment: python launch.py --config=configs/NAME.py --workdir=DIR [--config.FIELD=VALUE ...]."""

# ruff: noqa: E402 - signals come before imports

import os
import signal
import sys


def _stop(number: int, frame: object) -> None:
    # Nothing is open yet, and an exception in the middle of an import may come to anything.
    os.write(2, b"stopped\n")
    os._exit(75)  # ending.STATUS_INTERRUPTED


if __name__ == "__main__":  # before the imports, which take seconds
    for caught in (signal.SIGINT, signal.SIGTERM):
        signal.signal(caught, _stop)

import logging
from typing import NoReturn

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from refine_jax import command_line, ending, pipeline
from refine_jax.datasets import cache
from refine_jax.errors import RefineError, SettingError
from refine_jax.report.tables import text_table
from refine_jax.training import determinism, processes
from refine_jax.training.compilation import keep_compiled
from refine_jax.training.interruption import Interrupted, ended_by_signals

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Experiment, a file of configs/, also configs/NAME.py:VARIANT."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Working directory; an earlier run in it is gone on with.")
_STAGES = flags.DEFINE_list("stages", list(pipeline.STAGES), "Stages to run, of those in the default.")
_KEEP_COMPILED = flags.DEFINE_bool("keep_compiled", True, "Keep compiled programs in the user's cache folder.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of the first process, where there are several.")
_PROCESSES = flags.DEFINE_integer("processes", None, "How many processes there are; SLURM and Open MPI say it.")
_PROCESS = flags.DEFINE_integer("process", None, "Which of them this is, from 0.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Delete what other settings have left in the working directory.")


def main(argv: list[str]) -> None:
    handler = absl_logging.get_absl_handler()
    # absl's handler is in place by now; its prefix of time, process and line is of no use here.
    handler.setFormatter(logging.Formatter("%(message)s"))
    ending.quieten(handler)
    absl_logging.set_verbosity(absl_logging.WARNING)
    logging.getLogger("refine_jax").setLevel(logging.INFO)
    if len(argv) > 1:
        raise RefineError(f"{argv[1]!r} belongs to no flag: flags are written --name=value")
    if not _STAGES.value:
        raise SettingError("stages", "", f"some of {', '.join(pipeline.STAGES)}, with commas between them")
    if _CONFIG.value.get("run", {}).get("deterministic"):
        determinism.ask()
    processes.connect(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    if _KEEP_COMPILED.value:
        keep_compiled(cache.directory() / "compiled")
    if not processes.is_first():  # it is needed where all work together, and says nothing
        logging.getLogger("refine_jax").setLevel(logging.WARNING)
    for stages in pipeline.turns(_STAGES.value):
        with processes.own_workdir(_WORKDIR.value) as workdir:
            results = pipeline.run(_CONFIG.value, workdir, stages, overwrite=_OVERWRITE.value)
    if results:
        print(text_table(results))


def run() -> None:
    """Runs `main`; what a user can mend ends in one sentence, and in an exit status of its own."""
    try:
        with ended_by_signals():
            app.run(main, flags_parser=command_line.parse)
    except Interrupted as stopped:
        sys.exit(_say(stopped, ending.STATUS_INTERRUPTED))
    except KeyboardInterrupt as stopped:
        ending.leave_at_once(_say(*ending.explain(stopped, None)))
    except Exception as error:
        workdir = _WORKDIR.value if flags.FLAGS.is_parsed() else None
        _leave(_say(*ending.explain(error, workdir)))


def _leave(status: int) -> NoReturn:
    processes.leave_at_once(status)
    sys.exit(status)


def _say(message: object, status: int) -> int:
    print(message, file=sys.stderr)
    return status


if __name__ == "__main__":
    run()
