import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

from refine_jax.errors import SettingError
from refine_jax.training import processes
from refine_jax.training.log import read_metrics

ROOT = pathlib.Path(__file__).parents[2]


def run(workdir, mode):
    """Runs two processes of two devices each; returns their statuses and what they have said."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"}
    environment.pop("XLA_FLAGS", None)
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.training.two_processes", str(port), "2", str(index), str(workdir), mode],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=240) for process in started]
    finally:
        for process in started:
            process.kill()
    lines = [[line for line in output.splitlines() if line.startswith("said ")] for output, _ in outputs]
    said = [json.loads(found[0].removeprefix("said ")) if found else None for found in lines]
    return [process.returncode for process in started], said, [errors for _, errors in outputs]


def test_two_processes_do_what_one_device_does_also_stopped_and_gone_on_with(tmp_path):
    workdir = tmp_path / "run"
    statuses, said, errors = run(workdir, "stop")
    assert statuses == [0, 0], errors
    # Process 1 was asked; both stop after the same step, and what the first has saved is named.
    assert all("victim stopped after step 2 of 6" in process["stopped"] for process in said)

    statuses, said, errors = run(workdir, "")
    assert statuses == [0, 0], errors
    for process in said:
        assert (process["devices"], process["steps"]) == (4, 6)
        assert process["apart"] < 1e-6
    # Only the first has written to the working directory; what the other needed is gone.
    assert said[0]["own"] == str(workdir)
    assert not pathlib.Path(said[1]["own"]).exists()
    assert [row["step"] for row in read_metrics(workdir / "metrics.jsonl")] == [*range(1, 7)]
    # The first speaks, the other does not.
    assert "epoch" in errors[0]
    assert "epoch" not in errors[1]


def test_a_process_that_fails_ends_the_other(tmp_path):
    statuses, _, _ = run(tmp_path / "run", "fail")
    assert statuses[0] == 2
    assert statuses[1] != 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("host:1", None, 0), "^processes = None: allowed: given together with"),
        ((None, 2, 0), "^coordinator = None: allowed: given together with"),
        (("host", 2, 0), "^coordinator = 'host': allowed: HOST:PORT"),
        (("host:1", 0, 0), "^processes = 0: allowed: 1 or more"),
        (("host:1", 2, 2), "^process = 2: allowed: 0 to 1"),
    ],
)
def test_what_cannot_be_a_meeting_is_refused(given, message):
    with pytest.raises(SettingError, match=message):
        processes.connect(*given)


def test_a_process_alone_meets_nobody_and_agrees_with_itself(tmp_path, monkeypatch):
    for name in ("OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.setenv(name, "1")
    processes.connect(None, None, None)
    assert processes.is_first()
    assert processes.agreed(True, False) == (True, False)
    with processes.own_workdir(tmp_path) as own:
        assert own == tmp_path


@pytest.mark.parametrize("launcher", ["Open MPI", "SLURM"])
def test_what_a_launcher_says_is_taken_from_its_environment(monkeypatch, launcher):
    asked = []
    monkeypatch.setattr(processes.jax.distributed, "initialize", lambda *given, **_: asked.append(given))
    monkeypatch.setenv({"Open MPI": "OMPI_COMM_WORLD_SIZE", "SLURM": "SLURM_STEP_NUM_TASKS"}[launcher], "4")
    processes.connect(None, None, None)
    assert asked == [(None, None, None)]
