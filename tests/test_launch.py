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

import launch as launch_module
from refine_jax import ending
from refine_jax.errors import StorageError
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


def test_a_signal_before_the_training_ends_a_run_with_the_same_status(launch, tmp_path):
    process = launch(*SMALL, f"--workdir={tmp_path}")
    wait_for(tmp_path / "settings.json", process)  # the lock is taken before
    process.send_signal(signal.SIGTERM)
    status, said, told = finish(process)
    assert (status, said) == (75, "")
    assert "Traceback" not in told
    assert "the same command goes on" in told.splitlines()[-1]
    assert not (tmp_path / "lock").exists()


@pytest.mark.skipif(not pathlib.Path("/proc/self/maps").exists(), reason="no /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_modules_are_imported_leaves_no_traceback(launch, tmp_path, number):
    process = launch(*SMALL, f"--workdir={tmp_path}")
    while "numpy" not in pathlib.Path(f"/proc/{process.pid}/maps").read_text():
        time.sleep(0.01)
    process.send_signal(number)
    assert finish(process) == (75, "", "stopped\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (StorageError("no checkpoint can be written"), 74, "error: no checkpoint can be written\n"),
        (
            OSError(28, "No space left on device", "runs/x/a.json"),
            74,
            "error: runs/x/a.json: No space left on device;",
        ),
        (OSError(30, "Read-only file system", "runs/x"), 74, "error: runs/x: Read-only file system;"),
        (KeyboardInterrupt(), 75, "stopped; stages that are done stay done"),
    ],
)
def test_statuses_of_what_can_come_at_any_time(monkeypatch, capsys, error, status, sentence):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(launch_module.app, "run", fail)
    monkeypatch.setattr(ending, "leave_at_once", sys.exit)  # tests/test_ending.py has the real one
    with pytest.raises(SystemExit) as ended:
        launch_module.run()
    assert ended.value.code == status
    assert capsys.readouterr().err.startswith(sentence)


def test_a_bug_stays_a_bug(monkeypatch, capsys):
    def fail(*_, **__):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(launch_module.app, "run", fail)
    with pytest.raises(SystemExit) as ended:
        launch_module.run()
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("Traceback")
