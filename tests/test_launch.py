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

# Eight steps of a victim as narrow as can be. The defense is trained by the same loop, and compiled as long again.
SMALL = (
    *("--config=configs/digits.py", "--stages=victim", "--config.run.log_every=1"),
    *("--config.dataset.train_images=256", "--config.victim.width=2", "--config.victim.epochs=2"),
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


def test_a_run_is_interrupted_gone_on_with_and_held_to_its_settings(launch, tmp_path):
    work = tmp_path / "run"
    command = (*SMALL, f"--workdir={work}")
    checkpoints = work / "victim" / "checkpoints"

    # Once that folder is there, a signal is a request; the first step, still being compiled, is the first to see it.
    process = launch(*command)
    wait_for(checkpoints, process)
    process.send_signal(signal.SIGINT)
    status, said, told = finish(process)
    assert (status, said) == (75, "")
    assert "Traceback" not in told
    last = told.splitlines()[-1]
    assert last == f"victim stopped after step 1 of 8: saved in {checkpoints}; the same command goes on from there"
    assert [path.name for path in checkpoints.iterdir()] == ["1"]

    status, said, told = finish(launch(*command))
    assert (status, said) == (0, ""), told
    assert f"victim: goes on from step 1 of {checkpoints}" in told
    assert [row["step"] for row in read_metrics(work / "metrics.jsonl")] == [*range(1, 9)]
    record = json.loads((work / "victim" / "stage.json").read_text())
    assert record["outcome"]["victim_sha256"]

    # What is done is not done again, and what other settings would do is refused by name.
    status, said, told = finish(launch(*command, "--config.victim.epochs=3"))
    assert (status, said) == (2, "")
    assert told.startswith(
        f"error: stage 'victim' in {work / 'victim'} is from other settings (victim.epochs: 2 -> 3)"
    )
    assert "--overwrite" in told
    assert json.loads((work / "victim" / "stage.json").read_text()) == record
