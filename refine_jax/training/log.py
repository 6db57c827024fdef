"""What a training says: one live line for a person, metrics.jsonl for programs."""

import json
import logging
import math
import os
import pathlib
import sys
import time
from collections.abc import Iterable
from typing import Any, TextIO

logger = logging.getLogger(__name__)

# Seconds between two of the plain lines that are printed where the output is not a terminal.
_PLAIN_INTERVAL = 15.0
_LIVE_INTERVAL = 0.2


class MetricsLog:
    """metrics.jsonl: a JSON object a line, {"stage", "step", "epoch", "time", name: value, ...}, appended.

    Args:
        path: Of the file.
        stage: Whose rows are written.
        step: The step that the stage goes on from. Rows of this stage beyond it, left by a run that died
            after its last checkpoint, are taken out, so that no step stands there twice.
    """

    def __init__(self, path: pathlib.Path, stage: str, step: int):
        self._path, self._stage = path, stage
        rows = [row for row in read_metrics(path) if row["stage"] != stage or row["step"] <= step]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
        os.replace(temporary, path)

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Appends rows that have 'step' and 'epoch'; stage and time are added."""
        now = round(time.time(), 3)
        lines = [json.dumps({"stage": self._stage, **row, "time": now}) + "\n" for row in rows]
        with self._path.open("a") as file:
            file.write("".join(lines))


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the rows of a metrics.jsonl; a last line cut off by a kill is passed over."""
    rows = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if isinstance(row, dict) and {"stage", "step"} <= row.keys():
            rows.append(row)
        else:
            logger.warning("%s: a line that is not whole is left out: %.60r", path, line)
    return rows


class Progress:
    """One line that is rewritten on a terminal; elsewhere a plain line now and then.

    Args:
        stage: Said at the start of the line.
        epochs: Of the whole training.
        stream: Where to; None: the standard error.
    """

    def __init__(self, stage: str, epochs: int, stream: TextIO | None = None):
        self._stage, self._epochs = stage, epochs
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._last_shown = -math.inf
        self._width = 0

    def show(
        self,
        epoch: float,
        loss: float,
        learning_rate: float,
        images_per_second: float | None,
        left: float | None,
        *,
        last: bool = False,
    ) -> None:
        """Shows where the training stands, unless it did so just now.

        Args:
            epoch: Epochs done, fractions too.
            loss: Of the newest step.
            learning_rate: Likewise.
            images_per_second: Trained on; None as long as it is not known.
            left: Seconds; None likewise.
            last: Whether this ends the training; then it is shown in any case.
        """
        now = time.monotonic()
        if not last and now - self._last_shown < (_LIVE_INTERVAL if self._live else _PLAIN_INTERVAL):
            return
        self._last_shown = now
        line = (
            f"{self._stage}  epoch {epoch:.{0 if epoch == int(epoch) else 1}f}/{self._epochs}  loss {loss:.4f}  "
            f"lr {learning_rate:.2g}"
        )
        if images_per_second is not None:
            line += f"  {images_per_second:,.0f} images/s"
        if left is not None:
            line += f"  {format_seconds(left)} left"
        if self._live:
            self._stream.write("\r" + line.ljust(self._width) + ("\n" if last else ""))
            self._width = len(line)
        else:
            self._stream.write(line + "\n")
        self._stream.flush()

    def end_line(self) -> None:
        """Leaves the live line, so that what is printed next begins on a line of its own."""
        if self._live and self._width:
            self._stream.write("\n")
            self._stream.flush()


def format_seconds(seconds: float) -> str:
    """Returns 1:02:03, or 2:03 under an hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
