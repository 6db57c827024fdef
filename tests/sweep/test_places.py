"""Tasks in processes of their own, on shares of what the machine has, and through submitit's local executor."""

import sys
import time

import pytest

from refine_jax.errors import RefineError, SettingError
from refine_jax.sweep import places, plan, schedule, state
from tests.sweep.fake import make

# Stands in for `python -m refine_jax.sweep ... --run NAME`.
SCRIPT = "import os, sys; print(os.environ['CUDA_VISIBLE_DEVICES']); sys.exit(5 * ('seed=1' in sys.argv[1]))"


def finish(job):
    while (status := job.poll()) is None:
        time.sleep(0.05)
    return status


@pytest.mark.parametrize(
    ("count", "shares"), [(1, [["a", "b", "c"]]), (2, [["a", "b"], ["c"]]), (3, [["a"], ["b"], ["c"]])]
)
def test_devices_are_shared_out_evenly(count, shares):
    assert [places.share(["a", "b", "c"], count, place) for place in range(count)] == shares


def test_processes_see_a_share_of_the_gpus_and_their_status_is_heard(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    runs = plan.expand(make(), tmp_path).runs
    start = places.processes([sys.executable, "-c", SCRIPT], 2, tmp_path / "logs")
    jobs = [start(run) for run in runs]
    assert [finish(job) for job in jobs] == [0, 5]
    said = [(tmp_path / "logs" / f"{run.name}.log").read_text() for run in runs]
    assert said == ["4,5\n", "6,7\n"]
    assert finish(start(runs[0])) == 0  # in the place of one that has ended
    with pytest.raises(SettingError, match=r"--processes = 5: allowed: 1 to 4, the number of GPUs"):
        places.processes([sys.executable], 5, tmp_path)


def test_a_process_that_dies_is_a_failure(tmp_path):
    runs = plan.expand(make(), tmp_path).runs
    for run in runs:
        run.victim.workdir.mkdir(parents=True)
    command = [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"]
    tasks = [runs[0].victim]
    schedule.go_through(tasks, places.processes(command, 1, tmp_path / "logs"), 1)
    assert state.state_of(tasks[0]) == state.State("failed", "it ended with status -9, a signal")


def work(name):
    """What submitit's process does."""
    if "seed=1" in name:
        raise ValueError("not this one")
    return 0


def test_submitits_local_executor_does_tasks_and_tells_their_failures(tmp_path):
    cloudpickle = pytest.importorskip("cloudpickle")
    pytest.importorskip("submitit")
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    runs = plan.expand(make(), tmp_path).runs
    try:
        start = places.cluster("local", work, tmp_path / "logs", ["timeout_min=2"])
        jobs = [start(run) for run in runs]
        assert [finish(job) for job in jobs] == [0, 1]
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    found = state.state_of(runs[1])
    assert found.kind == "failed"
    assert "ValueError: not this one" in found.error


def test_what_submitit_will_not_take_is_said(tmp_path):
    pytest.importorskip("submitit")
    with pytest.raises(RefineError, match=r"--cluster=local: .*'gpus'"):
        places.cluster("local", work, tmp_path, ["gpus=1"])
    with pytest.raises(SettingError, match=r"--submit = 'timeout_min': allowed: NAME=VALUE"):
        places.cluster("local", work, tmp_path, ["timeout_min"])
