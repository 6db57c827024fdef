import concurrent.futures
import json
import os
import pathlib
import socket
import subprocess
import sys

import chex
import pytest

from refine_jax.errors import SettingError
from refine_jax.training import processes
from refine_jax.training.checkpoints import read
from refine_jax.training.log import read_metrics
from refine_jax.workdir import Workdir

ROOT = pathlib.Path(__file__).parents[2]


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def run(folder, module, *commands):
    """Runs a process of two devices for each list of arguments, all at once; returns statuses, outputs, errors."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2", "TMPDIR": str(folder)}
    environment["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
    started = [
        subprocess.Popen(
            [sys.executable, "-m", f"tests.training.{module}", *arguments],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for arguments in commands
    ]
    try:
        # Read together: one that waits for its output to be read would keep the others waiting.
        with concurrent.futures.ThreadPoolExecutor() as readers:
            outputs = [*readers.map(lambda process: process.communicate(timeout=240), started)]
    finally:
        for process in started:
            process.kill()
    return [process.returncode for process in started], *zip(*outputs, strict=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What tests/training/two_processes.py has come to: folder, statuses, what was said, errors."""
    folder = tmp_path_factory.mktemp("two")
    port = str(free_port())
    statuses, outputs, errors = run(
        folder, "two_processes", *([port, "2", str(index), str(folder)] for index in range(2))
    )
    lines = [[line for line in output.splitlines() if line.startswith("said ")] for output in outputs]
    assert all(lines), errors
    return folder, statuses, [json.loads(found.removeprefix("said ")) for (found,) in lines], errors


def test_two_processes_do_what_one_device_does_also_stopped_and_gone_on_with(trained):
    folder, _, said, errors = trained
    workdir = folder / "run"
    # Process 1 was asked; both stop after the same step, and what the first has saved is named.
    assert all("victim stopped after step 2 of 6" in process["stopped"] for process in said)
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


def test_a_process_that_fails_ends_the_other(trained):
    _, statuses, _, _ = trained
    assert statuses[0] == 2
    assert statuses[1] != 0


def test_a_whole_run_in_two_processes_comes_to_what_it_comes_to_on_one_device(tmp_path):
    changes = {
        **{"victim.name": "tiny", "victim.width": 64, "victim.epochs": 1, "victim.batch_size": 48},
        **{"dataset.train_images": 96},
        **{"defense.epochs": 1, "defense.batch_size": 48, "defense.width": 2, "defense.depth": 1, "run.log_every": 1},
        "defense.optimizer": "sgd",  # Adam would make much of the rounding in gradients that are 0
    }
    stages, meeting = "--stages=victim,defend,evaluate", f"--coordinator=localhost:{free_port()}"
    flags = ["--config=configs/digits.py", stages, "--nokeep_compiled"]
    flags += [f"--config.{name}={value}" for name, value in changes.items()]
    statuses, outputs, errors = run(
        tmp_path,
        "launched",
        *([*flags, f"--workdir={tmp_path / 'two'}", meeting, "--processes=2", f"--process={i}"] for i in range(2)),
        [*flags, f"--workdir={tmp_path / 'one'}", "--config.run.devices=1"],
    )
    assert statuses == [0, 0, 0], errors
    # The first measures, and prints the table; the other has written to a folder that is gone.
    assert "refine" in outputs[0]
    assert "refine" not in outputs[1] + errors[1]
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two"}

    # Two steps of the victim, and two of REFINE.
    rows, expected = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("two", "one"))
    assert [(row["stage"], row["step"]) for row in rows] == [(row["stage"], row["step"]) for row in expected]
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in expected], rel=1e-5)
    assert [row["gradient_norm"] for row in rows] == pytest.approx(
        [row["gradient_norm"] for row in expected], rel=4e-2
    )
    for folder in ("victim", "defense/refine"):
        (trained, _), (wanted, _) = (read(tmp_path / name / folder / "checkpoints") for name in ("two", "one"))
        for part in ("params", "batch_stats"):
            chex.assert_trees_all_close(trained[part], wanted[part], rtol=1e-3, atol=1e-5)
    together, alone = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("two", "one"))
    assert together["hashes"]["attack"] == alone["hashes"]["attack"]
    # Of hundreds of images, rounding may move one or two across a border.
    for name in ("ba", "asr", "ra"):
        assert together["no_defense"][name] == pytest.approx(alone["no_defense"][name], abs=0.01)
        assert together["defenses"]["refine"][name] == pytest.approx(alone["defenses"]["refine"][name], abs=0.01)


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


def test_the_copy_of_a_working_directory_is_nobody_elses(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(processes.jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes.jax, "process_index", lambda: 1)
    monkeypatch.setattr(processes, "wait_for_all", lambda where: None)
    work = Workdir("~/run")
    work.create()
    work.settings.write_text("{}")
    work.lock.write_text("of a process that was killed")
    with processes.own_workdir("~/run") as own:
        assert [path.name for path in pathlib.Path(own).iterdir()] == ["settings.json"]
    assert work.lock.exists()


@pytest.mark.parametrize("launcher", ["Open MPI", "SLURM"])
def test_what_a_launcher_says_is_taken_from_its_environment(monkeypatch, launcher):
    asked = []
    monkeypatch.setattr(processes.jax.distributed, "initialize", lambda *given, **_: asked.append(given))
    monkeypatch.setenv({"Open MPI": "OMPI_COMM_WORLD_SIZE", "SLURM": "SLURM_STEP_NUM_TASKS"}[launcher], "4")
    processes.connect(None, None, None)
    assert asked == [(None, None, None)]
