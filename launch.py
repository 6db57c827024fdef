"""Runs an experiment: python launch.py --config=configs/NAME.py --workdir=DIR [--config.FIELD=VALUE ...]."""

import logging
import sys

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from refine_jax import command_line, pipeline
from refine_jax.errors import RefineError, SettingError
from refine_jax.report.tables import text_table
from refine_jax.training.interruption import Interrupted

STATUS_ERROR, STATUS_INTERRUPTED = 2, 75

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Experiment, a file of configs/, also configs/NAME.py:VARIANT."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Working directory; an earlier run in it is gone on with.")
_STAGES = flags.DEFINE_list("stages", list(pipeline.STAGES), "Stages to run, of those in the default.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Delete what other settings have left in the working directory.")


def main(argv: list[str]) -> None:
    # absl's handler is in place by now; its prefix of time, process and line is of no use here.
    absl_logging.get_absl_handler().setFormatter(logging.Formatter("%(message)s"))
    absl_logging.set_verbosity(absl_logging.WARNING)
    logging.getLogger("refine_jax").setLevel(logging.INFO)
    if len(argv) > 1:
        raise RefineError(f"{argv[1]!r} belongs to no flag: flags are written --name=value")
    if not _STAGES.value:
        raise SettingError("stages", "", f"some of {', '.join(pipeline.STAGES)}, with commas between them")
    results = pipeline.run(_CONFIG.value, _WORKDIR.value, _STAGES.value, overwrite=_OVERWRITE.value)
    if results:
        print(text_table(results))


def run() -> None:
    """Runs `main`; what a user can mend ends in one sentence, and in an exit status of its own."""
    try:
        app.run(main, flags_parser=command_line.parse)
    except Interrupted as stopped:
        sys.exit(_say(stopped, STATUS_INTERRUPTED))
    except KeyboardInterrupt:
        sys.exit(_say("stopped; stages that are done stay done, and the same command goes on", STATUS_INTERRUPTED))
    except RefineError as error:
        sys.exit(_say(f"error: {error}", STATUS_ERROR))


def _say(message: object, status: int) -> int:
    print(message, file=sys.stderr)
    return status


if __name__ == "__main__":
    run()
