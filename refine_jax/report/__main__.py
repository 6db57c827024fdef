"""A page and tables over the figures of many runs.

    python -m refine_jax.report DIR... [--output=comparison]

DIR is a working directory, a folder of them, or the working directory of a sweep.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from refine_jax import artifacts, ending
from refine_jax.report import compare

SCHEMA = 1


def parser() -> argparse.ArgumentParser:
    """Returns what reads the command line."""
    command_line = argparse.ArgumentParser(
        "python -m refine_jax.report", description="Puts the figures of many runs on one page.", allow_abbrev=False
    )
    add = command_line.add_argument
    add("directories", nargs="+", type=pathlib.Path, metavar="DIR", help="working directory, folder of them, or sweep")
    add("--output", type=pathlib.Path, default=pathlib.Path("comparison"), help="folder for the page and the tables")
    return command_line


def main(argv: Sequence[str] | None = None) -> pathlib.Path:
    """Does what a command line asks for.

    Args:
        argv: Its arguments; None: those of this process.

    Returns:
        The page.

    Raises:
        RefineError: Something that the user can mend.
    """
    given = parser().parse_args(argv)
    rows = compare.read(compare.find(given.directories))
    with artifacts.writing(given.output, {"schema": SCHEMA}) as folder:
        compare.write(rows, folder, given.output)
    return given.output / "index.html"


if __name__ == "__main__":
    sys.exit(ending.print_outcome(main))
