"""What metrics.jsonl has, once more as event files for TensorBoard, by tensorboardX, which needs no TensorFlow."""

import importlib.util
import pathlib
import shutil
from collections.abc import Iterable
from typing import Any

from refine_jax.errors import SettingError

FOLDER, PACKAGE = "tensorboard", "tensorboardX"


def check(field: str, asked: bool) -> None:
    """Refuses to write event files where the package for them is not there.

    Raises:
        SettingError: They are asked for, and it is not.
    """
    if asked and importlib.util.find_spec(PACKAGE) is None:
        raise SettingError(field, True, f"with the package {PACKAGE}, which is not there: pip install {PACKAGE}")


class EventLog:
    """Event files of one training: a scalar for each number of a row.

    Args:
        folder: Of the training; without a step, what is in it is deleted.
        step: The step that the training goes on from; TensorBoard leaves out what an earlier run wrote beyond it.
    """

    def __init__(self, folder: pathlib.Path, step: int):
        from tensorboardX import SummaryWriter

        if not step:
            shutil.rmtree(folder, ignore_errors=True)
        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None, filename_suffix=f".{step}")

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Takes rows that have 'step'; a thread writes them within seconds, all of them before `close` returns."""
        for row in rows:
            for name, value in row.items():
                if name != "step" and isinstance(value, int | float):
                    self._writer.add_scalar(name, value, row["step"])

    def close(self) -> None:
        """Ends the file."""
        self._writer.close()
