"""The course of the trainings, from metrics.jsonl, in few enough points to be drawn."""

import pathlib
from collections.abc import Iterable

import numpy as np

from refine_jax.training.log import read_metrics

POINTS = 300
_NOT_DRAWN = ("stage", "time")


def read(path: pathlib.Path, stages: Iterable[str] | None = None, points: int = POINTS) -> dict[str, dict]:
    """Reads what the trainings have written.

    Args:
        path: Of a metrics.jsonl.
        stages: Which; None: all.
        points: How many of each curve at most; where there are more rows, each point is a mean over as many.

    Returns:
        stage -> name -> [points], 'step' among the names; of the rows' numbers only those that all rows have.
    """
    rows: dict[str, list[dict]] = {}
    for row in read_metrics(path):
        if stages is None or row["stage"] in stages:
            rows.setdefault(row["stage"], []).append(row)
    return {stage: _average(found, points) for stage, found in rows.items()}


def _average(rows: list[dict], points: int) -> dict[str, np.ndarray]:
    names = [name for name in rows[0] if name not in _NOT_DRAWN]
    numbers = [name for name in names if all(isinstance(row.get(name), int | float) for row in rows)]
    parts = np.array_split(np.arange(len(rows)), min(points, len(rows)))
    return {name: np.array([np.mean([rows[i][name] for i in part]) for part in parts]) for name in numbers}
