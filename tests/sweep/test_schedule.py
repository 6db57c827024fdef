"""What is done in which order, what is not done again, and what a stop or a failure leaves."""

import shutil

import pytest

from refine_jax import ending
from refine_jax.errors import SettingError, StorageError
from refine_jax.sweep import plan, schedule, state
from refine_jax.training.interruption import Interrupted
from tests.sweep.fake import Runs, make


def go(expanded, run, limit=1):
    schedule.go_through(expanded.tasks, lambda task: schedule.Ended(state.attempt(task, run=run)), limit)


@pytest.fixture
def twelve(tmp_path):
    return plan.expand(make({"defense.sup_weight": (0.0, 0.1, 0.2), "defense.depth": (3, 4)}), tmp_path)


def kinds(expanded):
    found = [state.state_of(task).kind for task in expanded.tasks]
    return {kind: found.count(kind) for kind in found}


def test_a_sweep_that_was_stopped_goes_on_where_it_was(twelve):
    first, stopped = Runs({"sup_weight=0.1,defense.depth=4,seed=0": Interrupted("stopped")}), twelve.runs[6]
    assert stopped.name == "runs/defense.sup_weight=0.1,defense.depth=4,seed=0"
    with pytest.raises(Interrupted):
        go(twelve, first)
    assert len(first.done) == 2 + 6
    assert kinds(twelve) == {"done": 8, "begun": 1, "waiting": 5}
    again = Runs()
    go(twelve, again)
    assert again.done == [task.name for task in twelve.tasks if task.name not in first.done]
    assert kinds(twelve) == {"done": 14}
    last = Runs()
    go(twelve, last)
    assert last.done == []


def test_a_failure_holds_up_nobody_and_is_tried_again_on_request(twelve):
    failing = twelve.runs[3]
    go(twelve, Runs({failing.name: SettingError("a.b", 1, "2"), twelve.runs[5].name: ValueError("a bug")}))
    assert kinds(twelve) == {"done": 12, "failed": 2}
    assert state.state_of(failing) == state.State("failed", "a.b = 1: allowed: 2")
    assert state.state_of(twelve.runs[5]).error.endswith("ValueError: a bug")
    assert state.state_of(twelve.runs[5]).error.startswith("Traceback")
    untried = Runs()
    go(twelve, untried)
    assert untried.done == []
    for task in twelve.tasks:
        state.forget_failure(task)
    again = Runs()
    go(twelve, again)
    assert again.done == [failing.name, twelve.runs[5].name]
    assert kinds(twelve) == {"done": 14}


def test_without_its_victim_a_run_is_left_out(twelve):
    runs = Runs({"victims/seed=1": SettingError("a.b", 1, "2")})
    go(twelve, runs)
    assert len(runs.done) == 1 + 6
    assert kinds(twelve) == {"done": 7, "failed": 1, "waiting": 6}


def test_a_victim_that_is_gone_is_trained_again_only_where_a_run_wants_it(twelve):
    go(twelve, Runs())
    for victim in twelve.victims:
        shutil.rmtree(victim.workdir)
    (twelve.runs[1].workdir / "results.json").unlink()
    assert twelve.runs[1].victim is twelve.victims[1]
    assert state.unneeded(twelve.tasks) == {twelve.victims[0]}
    again = Runs()
    go(twelve, again)
    assert again.done == [twelve.victims[1].name, twelve.runs[1].name]


def test_a_full_disk_ends_the_sweep(twelve):
    runs = Runs({"depth=4": OSError(28, "No space left on device")})
    with pytest.raises(StorageError, match="No space left"):
        go(twelve, runs)
    assert kinds(twelve)["done"] == 4  # two victims, two runs of depth 3


class Slow:
    """A job that is there for a few looks, and writes down how many are there with it."""

    together, most, stopped = 0, 0, 0

    def __init__(self, task, run):
        self.task, self.run, self.looks = task, run, 2
        Slow.together += 1
        Slow.most = max(Slow.most, Slow.together)

    def poll(self):
        self.looks -= 1
        if self.looks:
            return None
        Slow.together -= 1
        try:
            return state.attempt(self.task, run=self.run)
        except Interrupted:
            return ending.STATUS_INTERRUPTED

    def stop(self):
        Slow.stopped += 1

    def wait(self):
        pass


def test_as_many_as_asked_for_run_at_once_and_no_run_before_its_victim(twelve, monkeypatch):
    monkeypatch.setattr(schedule, "_PAUSE", 0)
    runs = Runs()  # asserts that the victim is there
    schedule.go_through(twelve.tasks, lambda task: Slow(task, runs), 3)
    assert Slow.most == 3
    assert kinds(twelve) == {"done": 14}


def test_all_that_run_are_stopped_with_the_first(twelve, monkeypatch):
    monkeypatch.setattr(schedule, "_PAUSE", 0)
    Slow.stopped = 0
    runs = Runs({"seed": Interrupted("stopped")})
    with pytest.raises(Interrupted):
        schedule.go_through(twelve.tasks, lambda task: Slow(task, runs), None)
    assert Slow.stopped == 1  # the other of the two victims; no run has begun


def test_done_is_what_was_done_with_the_settings_that_it_has_now(tmp_path):
    sweep = make({"defense.depth": (3,)}, seeds=(0,))
    go(plan.expand(sweep, tmp_path), Runs())
    sweep.base.run.log_every = 5
    sweep.base.dataset.data_dir = "elsewhere"
    assert kinds(plan.expand(sweep, tmp_path)) == {"done": 2}
    sweep.base.defense.epochs = 7
    assert kinds(plan.expand(sweep, tmp_path)) == {"done": 1, "begun": 1}
    sweep.base.victim.epochs = 7
    assert kinds(plan.expand(sweep, tmp_path)) == {"begun": 2}
