"""A run that is killed at random moments, with kill -9, comes to what it would have come to."""

import json
import os
import random

import pytest

from fuzz import kill_runs

# Two kills of a run with hardly any steps; fuzz/kill_runs.py does twenty of a longer one.
KILLS = int(os.environ.get("REFINE_JAX_KILLS", "2"))
SMALL = (
    *kill_runs.SMALL,
    *("--config.victim.epochs=2", "--config.defense.epochs=2", "--stages=victim,defend,evaluate"),
)


def test_a_run_that_is_killed_at_random_comes_to_the_same(tmp_path, capsys):
    assert kill_runs.compare(tmp_path, KILLS, random.Random(), SMALL) == []
    assert capsys.readouterr().out.count("kill ") == KILLS


@pytest.fixture
def runs(tmp_path):
    """Two working directories as of runs that came to their ends."""
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(
            '{"hashes": {"victim": "abc"}, "victim": {"train_seconds": 1.5}}'
        )
        (tmp_path / name / "metrics.jsonl").write_text('{"stage": "victim", "step": 1, "loss": 2.0, "time": 3.0}\n')
    return tmp_path / "one", tmp_path / "other"


def test_the_comparison_overlooks_times_alone(runs):
    one, other = runs
    (other / "results.json").write_text('{"hashes": {"victim": "abc"}, "victim": {"train_seconds": 2.5}}')
    row = json.loads((other / "metrics.jsonl").read_text())
    (other / "metrics.jsonl").write_text(json.dumps({**row, "time": 4.0}) + "\n")
    assert kill_runs.differences(one, other) == []


def test_the_comparison_finds_what_differs(runs):
    one, other = runs
    (other / "results.json").write_text('{"hashes": {"victim": "abd"}, "victim": {"train_seconds": 1.5}}')
    (other / "metrics.jsonl").write_text(2 * (other / "metrics.jsonl").read_text())
    (other / "victim").mkdir()
    (other / "victim" / "2.orbax-checkpoint-tmp").mkdir()
    assert kill_runs.differences(one, other) == [
        "results.json",
        "metrics.jsonl",
        "a step stands twice in metrics.jsonl",
        "victim/2.orbax-checkpoint-tmp was left",
    ]
