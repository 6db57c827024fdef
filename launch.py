"""Runs an experiment: python launch.py --config=configs/NAME.py --workdir=DIR [--config.FIELD=VALUE ...]."""

import logging
import sys

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from refine_jax import pipeline, settings
from refine_jax.errors import RefineError
from refine_jax.report.tables import text_table
from refine_jax.training.interruption import Interrupted

STATUS_ERROR, STATUS_INTERRUPTED = 2, 75

_CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment, a file of configs/, also configs/NAME.py:VARIANT.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Working directory; an earlier run in it is gone on with.")
_STAGES = flags.DEFINE_list("stages", list(pipeline.STAGES), "Stages to run, of those in the default.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Delete what other settings have left in the working directory.")
flags.mark_flags_as_required(["config", "workdir"])


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise RefineError(f"{argv[1]!r} belongs to no flag: flags are written --name=value")
    results = pipeline.run(_CONFIG.value, _WORKDIR.value, _STAGES.value, overwrite=_OVERWRITE.value)
    if results:
        print(text_table(results))


def parse_flags(argv: list[str]) -> list[str]:
    # The flags of an unknown field would end in a traceback that does not name it.
    for argument in argv[1:]:
        name, _, value = argument.lstrip("-").partition("=")
        if name.startswith("config."):
            settings.check_field(name.removeprefix("config."), value)
    return app.parse_flags_with_usage(argv)


def run() -> None:
    """Runs `main`; what a user can mend ends in one sentence, and in an exit status of its own."""
    absl_logging.set_verbosity(absl_logging.WARNING)
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("refine_jax").setLevel(logging.INFO)
    try:
        app.run(main, flags_parser=parse_flags)
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
