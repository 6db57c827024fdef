import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refine_jax.datasets.feed import Feed
from refine_jax.keys import named_key
from refine_jax.training import loop
from refine_jax.training.interruption import Interrupted
from refine_jax.training.journal import Journal
from refine_jax.training.log import read_metrics
from refine_jax.training.optimizer import create_optimizer, create_schedule
from refine_jax.training.parallel import Execution, Step
from refine_jax.training.state import TrainState

# Ten full batches and a smaller one an epoch.
COUNT, BATCH, EPOCHS, PER_EPOCH = 52, 5, 2, 11
SETTINGS = {
    **{"optimizer": "sgd", "momentum": 0.9, "weight_decay": 1e-3, "schedule": "multistep", "learning_rate": 0.1},
    **{"milestones": (0.5,), "decay": 0.5, "epochs": EPOCHS},
}


class Counting(Step):
    """Notes how many steps its calls had; is asked to stop in the call of the number `stop_in`."""

    stop_in = None

    def place(self, tree):
        self.calls = []
        return super().place(tree)

    def _note(self, count):
        self.calls.append(count)
        if len(self.calls) == self.stop_in:
            signal.raise_signal(signal.SIGTERM)

    def __call__(self, state, data, batch):
        self._note(1)
        return super().__call__(state, data, batch)

    def several(self, state, data, batches):
        self._note(len(batches))
        return super().several(state, data, batches)


@pytest.fixture
def fit(tmp_path):
    """Trains a linear regression with noise; returns the outcome, the lengths of the calls, the rows, the step."""
    rng = np.random.default_rng(0)
    feed = Feed(COUNT, BATCH, jax.random.key(1), keep_last=True)
    schedule = create_schedule(SETTINGS, feed.steps_per_epoch)
    optimizer = create_optimizer(SETTINGS, schedule)
    data = {"inputs": rng.normal(size=(COUNT, 4)).astype(np.float32), "key": jax.random.key(5)}
    data["targets"] = data["inputs"] @ rng.normal(size=(4, 2)).astype(np.float32)

    def function(state, data, batch):
        indices = batch["indices"]
        inputs = data["inputs"][indices] + 0.1 * jax.random.normal(
            named_key(data["key"], state.step), (len(indices), 4)
        )
        loss_fn = lambda params: jnp.mean((inputs @ params["kernel"] - data["targets"][indices]) ** 2)  # noqa: E731
        loss, gradients = jax.value_and_grad(loss_fn)(state.params)
        return state.updated(optimizer, gradients, {}), {"loss": loss}

    def run(name, steps_per_call, stop_in=None, feed=feed, **changed):
        step = Counting(lambda axis_name: function, Execution(steps_per_call=steps_per_call))
        step.stop_in = stop_in
        params = {"kernel": jnp.zeros((4, 2))}
        state = TrainState(jnp.zeros((), jnp.int32), params, {}, optimizer.init(params))
        folder = tmp_path / name
        given = {"log_every": 1, "checkpoint_minutes": 60.0, **changed}
        journal = Journal(folder / "checkpoints", tmp_path / f"{name}.jsonl", {}, **given)
        outcome = None
        try:
            outcome = loop.fit("victim", step, state, data, feed, schedule, journal)
        except Interrupted:
            assert stop_in is not None
        return outcome, step.calls, read_metrics(journal.metrics), step

    return run


def test_several_steps_a_call_come_to_what_single_ones_come_to(fit):
    single, calls, rows, _ = fit("single", 1)
    assert calls == [1] * (EPOCHS * PER_EPOCH)
    several, calls, rows_of_several, step = fit("several", 4)
    # Eight of ten in two calls; the rest of the epoch and its smaller batch one by one.
    assert calls == [4, 4, 1, 1, 1] * EPOCHS
    chex.assert_trees_all_close(several.state, single.state, rtol=1e-5, atol=1e-6)
    names = ("step", "epoch", "learning_rate")
    assert [[row[name] for name in names] for row in rows_of_several] == [
        [row[name] for name in names] for row in rows
    ]
    losses, expected = ([row["loss"] for row in given] for given in (rows_of_several, rows))
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    # One program for four steps; one for a full batch, one for the smaller.
    assert (step._several._cache_size(), step._whole._cache_size()) == (1, 2)


def test_batches_of_one_size_fill_calls_across_epochs_by_one_program(fit):
    # As many batches of full size an epoch as before, and no smaller one.
    feed = Feed(COUNT, BATCH, jax.random.key(1), keep_last=False)
    single, _, rows, _ = fit("single", 1, feed=feed)
    _, calls, _, _ = fit("several", 4, stop_in=3, feed=feed)
    assert calls == [4, 4, 4]
    several, calls, rows_of_several, step = fit("several", 4, feed=feed)
    # The schedule is of two epochs of eleven steps: there are two more.
    assert calls == [4, 4, 1, 1]
    assert (step._several._cache_size(), step._whole._cache_size()) == (1, 1)
    chex.assert_trees_all_close(several.state, single.state, rtol=1e-5, atol=1e-6)
    assert [(row["step"], row["epoch"]) for row in rows_of_several] == [(row["step"], row["epoch"]) for row in rows]


@pytest.mark.parametrize(("stop_in", "done"), [(1, 4), (2, 8), (3, 9), (6, 15)])
def test_a_training_is_stopped_after_a_call_and_comes_to_the_same_bit_for_bit(fit, stop_in, done):
    whole, _, rows, _ = fit("whole", 4)
    _, calls, _, _ = fit("cut", 4, stop_in)
    assert sum(calls) == done
    resumed, calls, resumed_rows, _ = fit("cut", 4)
    assert sum(calls) == EPOCHS * PER_EPOCH - done
    chex.assert_trees_all_equal(resumed.state, whole.state)
    assert [(row["step"], row["loss"]) for row in resumed_rows] == [(row["step"], row["loss"]) for row in rows]


def test_checkpoints_by_steps_are_not_passed_over_by_calls(fit, tmp_path):
    fit("often", 4, checkpoint_steps=6, keep_checkpoints=100)
    # After the call in which a sixth step is: 6, 12 and 18 lie in calls that end after 8, 15 and 19 steps.
    there = {int(path.name) for path in (tmp_path / "often" / "checkpoints").iterdir() if path.name.isdigit()}
    assert there == {8, 15, 19, 22}


def test_rows_are_asked_for_by_steps_however_many_are_in_a_call(fit):
    _, _, rows, _ = fit("seldom", 4, log_every=5)
    assert [row["step"] for row in rows] == [1, 5, 10, 15, 20]
