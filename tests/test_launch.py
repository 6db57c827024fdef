"""launch.py as a process of its own: what it prints where, its exit status, and signals in the middle of a run."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from refine_jax.training.log import read_metrics

ROOT = pathlib.Path(__file__).parent.parent

# Eight steps of the victim and four of the defense, of networks as narrow as can be.
SMALL = (
    "--config=configs/digits.py",
    *("--config.dataset.train_images=256", "--config.run.log_every=1"),
    *("--config.victim.width=2", "--config.victim.epochs=2"),
    *("--config.defense.width=2", "--config.defense.depth=1", "--config.defense.epochs=1"),
)


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Compiled programs are kept for the runs of this file, which compile the same ones again and again."""
    cache = tmp_path_factory.mktemp("compiled")
    kept = {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return {**os.environ, **kept, "JAX_PLATFORMS": "cpu"}


@pytest.fixture
def launch(environment):
    """Starts launch.py with flags; a process that the test leaves running is ended with it."""
    with contextlib.ExitStack() as left:

        def start(*arguments):
            process = subprocess.Popen(
                [sys.executable, "launch.py", *arguments],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            left.callback(process.kill)
            return process

        yield start


def wait_for(path, process):
    """Waits until a run has got as far as making `path`."""
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def finish(process):
    said, told = process.communicate(timeout=240)
    return process.returncode, said, told


def test_an_error_goes_to_the_standard_error_within_seconds(launch, tmp_path):
    started = time.monotonic()
    status, said, told = finish(launch(*SMALL, f"--workdir={tmp_path}", "--config.victim.epoch=3"))
    assert (status, said) == (2, "")
    assert told.startswith("error: victim.epoch = '3': allowed: ")
    assert told.count("\n") == 1
    assert time.monotonic() - started < 30
    assert list(tmp_path.iterdir()) == []


def test_help_names_the_flags(launch):
    _, said, told = finish(launch("--help"))
    assert all(f"--{name}" in said for name in ("config", "workdir", "stages", "[no]overwrite"))
    assert told == ""


def test_a_run_is_interrupted_twice_gone_on_with_and_held_to_its_settings(launch, tmp_path):
    work = tmp_path / "run"
    command = (*SMALL, f"--workdir={work}")

    # Once its folder is there, a signal is a request, which the first step, being compiled, is the first to see.
    for stage, folder, number, total in (
        ("victim", work / "victim", signal.SIGINT, 8),
        ("refine", work / "defense" / "refine", signal.SIGTERM, 4),
    ):
        process = launch(*command)
        wait_for(folder / "checkpoints", process)
        process.send_signal(number)
        status, said, told = finish(process)
        assert (status, said) == (75, "")
        assert "Traceback" not in told
        last = told.splitlines()[-1]
        assert last.startswith(f"{stage} stopped after step ")
        assert last.endswith(f" of {total}: saved in {folder / 'checkpoints'}; the same command goes on from there")
        step = int(last.split(" of ")[0].rpartition(" ")[2])
        assert [path.name for path in (folder / "checkpoints").iterdir()] == [str(step)]

    status, said, told = finish(launch(*command))
    assert status == 0, told
    assert "refine: goes on from step" in told
    assert "no defense" in said
    assert "mapped ASR" in said
    rows = read_metrics(work / "metrics.jsonl")
    assert [row["step"] for row in rows if row["stage"] == "victim"] == [*range(1, 9)]
    assert [row["step"] for row in rows if row["stage"] == "refine"] == [*range(1, 5)]
    assert json.loads((work / "results.json").read_text())["defenses"]["refine"]["counts"]["ba"][1] == 445

    # What is done is not done again, and what other settings would do is refused by name.
    again = finish(launch(*command))
    assert again[:2] == (0, said)
    status, said, told = finish(launch(*command, "--config.victim.epochs=3"))
    assert (status, said) == (2, "")
    assert told.startswith(
        f"error: stage 'victim' in {work / 'victim'} is from other settings (victim.epochs: 2 -> 3)"
    )
    assert "--overwrite" in told
