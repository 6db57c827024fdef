import json
import signal
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refine_jax.datasets.feed import Feed
from refine_jax.errors import WorkdirError
from refine_jax.keys import named_key
from refine_jax.training import loop
from refine_jax.training.checkpoints import read
from refine_jax.training.interruption import Interrupted
from refine_jax.training.journal import DIVERGED
from refine_jax.training.log import read_metrics
from refine_jax.training.optimizer import create_optimizer, create_schedule
from refine_jax.training.state import TrainState

COUNT, BATCH, EPOCHS, PER_EPOCH = 23, 5, 3, 4
TOTAL = EPOCHS * PER_EPOCH
SETTINGS = {
    **{"optimizer": "sgd", "momentum": 0.9, "weight_decay": 1e-3, "schedule": "multistep", "learning_rate": 0.1},
    **{"milestones": (0.5,), "decay": 0.5, "epochs": EPOCHS},
}


class ProcessDiedError(Exception):
    """Stands for a kill."""


@pytest.fixture
def training(tmp_path):
    """A linear regression with noise from the step, and whatever `fit` needs for it."""
    chex.clear_trace_counter()
    rng = np.random.default_rng(0)
    feed = Feed(COUNT, BATCH, jax.random.key(1), keep_last=False)
    schedule = create_schedule(SETTINGS, feed.steps_per_epoch)
    optimizer = create_optimizer(SETTINGS, schedule)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(state, data, batch):
        indices = batch["indices"]
        noise = jax.random.normal(named_key(data["key"], state.step), (len(indices), 4))
        inputs = data["inputs"][indices] + 0.1 * noise

        def loss_fn(params):
            return jnp.mean((inputs @ params["kernel"] - data["targets"][indices]) ** 2)

        loss, gradients = jax.value_and_grad(loss_fn)(state.params)
        statistics = {"mean": 0.9 * state.batch_stats["mean"] + 0.1 * inputs.mean(axis=0)}
        return state.updated(optimizer, gradients, statistics), {"loss": loss, "extra": loss * 2}

    def start():
        params = {"kernel": jnp.zeros((4, 2))}
        return TrainState(jnp.zeros((), jnp.int32), params, {"mean": jnp.zeros(4)}, optimizer.init(params))

    def journal(name="run", **changed):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        given = {"identity": {"sha256": "abc"}, "log_every": 1, "checkpoint_minutes": 60.0, **changed}
        return loop.Journal(folder / "checkpoints", folder / "metrics.jsonl", **given)

    data = {
        "inputs": jnp.asarray(rng.normal(size=(COUNT, 4)), jnp.float32),
        "targets": jnp.asarray(rng.normal(size=(COUNT, 2)), jnp.float32),
        "key": jax.random.key(5),
    }

    def fit(journal=None, *, before=None, norm=None, kept={}, data=data, state=None):
        """Runs `fit`; before step `number`, from 1, `before(number)` is called; `norm(number)` is one more metric."""
        count = types.SimpleNamespace(steps=0)

        def watched(state, *arguments):
            count.steps += 1
            if before:
                before(int(state.step) + 1)
            state, metrics = step(state, *arguments)
            return state, {**metrics, "gradient_norm": norm(count.steps)} if norm else metrics

        watched.place, watched.connect, watched.steps_per_call = jax.device_put, lambda: None, 1
        outcome = loop.fit("victim", watched, state or start(), data, feed, schedule, journal, kept)
        return outcome, count.steps

    return types.SimpleNamespace(fit=fit, journal=journal, step=step, start=start, data=data, feed=feed)


def logged(journal):
    rows = read_metrics(journal.metrics)
    for row in rows:
        row.pop("time")
    return rows


def at(step, action):
    return lambda number: action() if number == step else None


def die():
    raise ProcessDiedError


def interrupt():
    signal.raise_signal(signal.SIGINT)


def test_it_runs_every_step_of_the_schedule_on_the_feeds_batches(training):
    outcome, steps = training.fit()
    state = training.start()
    for number in range(TOTAL):
        state, _ = training.step(state, training.data, {"indices": training.feed.indices(number)})
    assert steps == TOTAL
    chex.assert_trees_all_equal(outcome.state, state)
    assert outcome.images_per_second > 0
    assert outcome.seconds > 0


def test_nothing_is_compiled_after_the_first_step_and_after_going_on(training):
    # The step of this training refuses to be traced twice.
    with pytest.raises(Interrupted):
        training.fit(training.journal(), before=at(5, interrupt))
    training.fit(training.journal())
    assert training.step._cache_size() == 1


def test_metrics_tell_every_step_with_its_epoch_and_rate(training):
    journal = training.journal()
    training.fit(journal)
    rows = logged(journal)
    assert [row["step"] for row in rows] == [*range(1, TOTAL + 1)]
    assert [row["epoch"] for row in rows] == [number // PER_EPOCH for number in range(TOTAL)]
    # The milestone, half of three epochs, is the beginning of epoch 2.
    assert [row["learning_rate"] for row in rows] == [0.1] * 8 + [0.05] * 4
    assert all(row["stage"] == "victim" and row["extra"] == 2 * row["loss"] for row in rows)


@pytest.mark.parametrize("log_every", [2, 5, 100])
def test_rows_are_the_first_step_and_every_so_many(training, log_every):
    journal = training.journal(log_every=log_every)
    training.fit(journal)
    expected = sorted({1, *range(log_every, TOTAL + 1, log_every)})
    assert [row["step"] for row in logged(journal)] == expected


STOPS = {
    "asked in the first step": (1, interrupt, Interrupted),
    "asked within an epoch": (6, interrupt, Interrupted),
    "asked at the end of an epoch": (8, interrupt, Interrupted),
    "asked in the last step": (TOTAL, interrupt, Interrupted),
    "dead in the first step": (1, die, ProcessDiedError),
    "dead later": (7, die, ProcessDiedError),
}


@pytest.mark.parametrize("minutes", [60.0, 1e-9], ids=["few checkpoints", "one after every step"])
@pytest.mark.parametrize("stop", STOPS)
def test_a_training_that_was_stopped_comes_to_the_same_bit_for_bit(training, stop, minutes):
    whole_journal, journal = training.journal("whole"), training.journal("cut", checkpoint_minutes=minutes)
    whole, _ = training.fit(whole_journal)
    step, action, error = STOPS[stop]
    with pytest.raises(error):
        training.fit(journal, before=at(step, action))
    resumed, steps = training.fit(journal)
    chex.assert_trees_all_equal(resumed.state, whole.state)
    assert logged(journal) == logged(whole_journal)
    saved = step if error is Interrupted else step - 1 if minutes < 1 else 0
    assert steps == TOTAL - saved


def test_stopped_again_and_again_it_still_comes_to_the_same(training):
    whole, _ = training.fit()
    journal = training.journal()
    for step in range(1, TOTAL + 1):
        with pytest.raises(Interrupted):
            training.fit(journal, before=at(step, interrupt))
    resumed, steps = training.fit(journal)
    assert steps == 0
    assert resumed.images_per_second is None
    chex.assert_trees_all_equal(resumed.state, whole.state)
    assert [row["step"] for row in logged(journal)] == [*range(1, TOTAL + 1)]


def test_what_was_logged_after_the_last_checkpoint_is_not_logged_twice(training):
    journal = training.journal()
    with pytest.raises(Interrupted):
        training.fit(journal, before=at(4, interrupt))
    with journal.metrics.open("a") as file:
        # Of a run that was killed before its next checkpoint, in the middle of a line.
        for step in (5, 6):
            file.write(json.dumps({"stage": "victim", "step": step, "epoch": 1, "loss": -1.0}) + "\n")
        file.write('{"stage": "victim", "st')
    training.fit(journal)
    assert [row["step"] for row in logged(journal)] == [*range(1, TOTAL + 1)]
    assert min(row["loss"] for row in logged(journal)) > 0


def test_checkpoints_by_steps_are_where_they_were_asked_for(training):
    journal = training.journal(checkpoint_steps=5, keep_checkpoints=9)
    training.fit(journal)
    assert sorted(int(path.name) for path in journal.checkpoints.iterdir()) == [5, 10, TOTAL]


def test_a_training_goes_on_from_the_checkpoint_before_a_damaged_one(training, caplog):
    whole, _ = training.fit()
    journal = training.journal(checkpoint_steps=4)
    with pytest.raises(ProcessDiedError):
        training.fit(journal, before=at(10, die))
    (journal.checkpoints / "8" / "meta" / "metadata").write_text("{")
    resumed, steps = training.fit(journal)
    assert steps == TOTAL - 4
    assert f"the checkpoint {journal.checkpoints / '8'} cannot be read" in caplog.text
    chex.assert_trees_all_equal(resumed.state, whole.state)
    assert [row["step"] for row in logged(journal)] == [*range(1, TOTAL + 1)]


def test_the_best_by_training_loss_stays_beside_the_newest(training):
    journal = training.journal(checkpoint_steps=1, keep_checkpoints=1)
    training.fit(journal)
    losses = [row["loss"] for row in logged(journal)]
    best = 1 + losses.index(min(losses))
    assert sorted(int(path.name) for path in journal.checkpoints.iterdir()) == sorted({best, TOTAL})
    assert best < TOTAL


def test_being_stopped_says_where_and_what_was_saved(training):
    journal = training.journal()
    message = f"^victim stopped after step 6 of {TOTAL}: saved in {journal.checkpoints}; the same command goes on"
    with pytest.raises(Interrupted, match=message):
        training.fit(journal, before=at(6, interrupt))
    with pytest.raises(Interrupted, match=r"stopped after step 6 .*: nothing was saved"):
        training.fit(before=at(6, interrupt))


def test_a_request_while_the_last_checkpoint_is_written_is_not_lost(training, monkeypatch):
    save = loop.Checkpoints.save
    monkeypatch.setattr(loop.Checkpoints, "save", lambda *arguments: (save(*arguments), interrupt()))
    with pytest.raises(Interrupted):
        training.fit(training.journal())
    monkeypatch.undo()
    assert training.fit(training.journal())[1] == 0


def test_seconds_are_those_of_all_runs_together(training, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: clock[0])

    def tick(number):
        clock[0] += 10
        if number == 4:
            interrupt()

    with pytest.raises(Interrupted):
        training.fit(training.journal(), before=tick)
    outcome, _ = training.fit(training.journal(), before=lambda number: tick(0))
    assert outcome.seconds == 10 * TOTAL
    # 7 steps of 5 images in 70 seconds; the first one is left out, compilation is in it.
    assert outcome.images_per_second == pytest.approx(BATCH / 10)


def test_a_step_that_is_refused_an_answer_leaves_those_before_it_saved(training):
    """As of a victim that is asked, and is down, or whose budget is spent."""

    def refuse():
        raise WorkdirError("no answer")

    journal = training.journal()
    for _ in range(2):  # the second time nothing has been done that could be saved
        with pytest.raises(WorkdirError, match="no answer"):
            training.fit(journal, before=at(6, refuse))
        assert read(journal.checkpoints)[0]["step"] == 5
    with pytest.raises(WorkdirError, match="no answer"):
        training.fit(before=at(6, refuse))
    outcome, steps = training.fit(journal)
    assert steps == TOTAL - 5
    assert [row["step"] for row in logged(journal)] == [*range(1, TOTAL + 1)]
    chex.assert_trees_all_equal(outcome.state, training.fit()[0].state)


def test_a_checkpoint_of_another_identity_is_refused(training):
    training.fit(training.journal())
    message = r"checkpoints is of {'sha256': 'abc'}, this run of {'sha256': 'other'}: delete .*run to train again"
    with pytest.raises(WorkdirError, match=message):
        training.fit(training.journal(identity={"sha256": "other"}))


def test_what_belongs_to_the_trained_is_kept_and_compared(training):
    permutation = jnp.array([1, 2, 0])
    with pytest.raises(Interrupted):
        training.fit(training.journal(), before=at(2, interrupt), kept={"permutation": permutation})
    with pytest.raises(WorkdirError, match="checkpoints: the permutation there is not the one of this run"):
        training.fit(training.journal(), kept={"permutation": permutation[::-1]})
    _, steps = training.fit(training.journal(), kept={"permutation": permutation})
    assert steps == TOTAL - 2


def test_a_checkpoint_of_another_network_is_refused(training):
    training.fit(training.journal())
    state = training.start()
    other = state.replace(params={"kernel": jnp.zeros((4, 3))})
    with pytest.raises(WorkdirError, match=r"kernel.*\(4, 2\).*\(4, 3\)"):
        training.fit(training.journal(), state=other)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_training_that_diverges_ends_with_step_epoch_rate_and_images(training, value):
    spoilt = int(training.feed.indices(9)[2])
    first = next(number for number in range(TOTAL) if spoilt in training.feed.indices(number))
    data = {**training.data, "targets": training.data["targets"].at[spoilt].set(value)}
    journal = training.journal(checkpoint_steps=1)
    with pytest.raises(loop.Diverged) as caught:
        training.fit(journal, data=data)
    rate, images = 0.1 if first < 8 else 0.05, [int(index) for index in training.feed.indices(first)]
    message = str(caught.value)
    assert message.startswith(f"victim: the loss is {value} at step {first + 1} ")
    named = ", ".join(map(str, images))
    assert f"(epoch {first // PER_EPOCH}, learning rate {rate}, images {named}): a lower" in message
    assert [row["step"] for row in logged(journal)] == [*range(1, first + 1)]
    assert all(np.isfinite(row["loss"]) for row in logged(journal))

    # What it came to lies beside the checkpoints, and none of these is of a state that is not finite.
    folder = journal.checkpoints.parent / DIVERGED
    assert message.endswith(f"in {folder}")
    report = json.loads((folder / "report.json").read_text())
    assert (report["step"], report["indices"], report["loss"]) == (first + 1, images, str(value))
    left, _ = read(folder)
    assert left["step"] == report["state_after_step"] >= first + 1
    assert not np.isfinite(left["params"]["kernel"]).any()
    if first:
        whole, _ = read(journal.checkpoints)
        assert whole["step"] == first
        assert np.isfinite(whole["params"]["kernel"]).all()


def test_a_gradient_that_is_not_finite_ends_a_training_too(training, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(loop.Diverged, match=r"the gradient norm is inf at step 3 .*a lower learning rate may help$"):
        training.fit(norm=lambda number: np.inf if number == 3 else 1.0)
    assert list(tmp_path.iterdir()) == []


def test_of_a_large_batch_the_first_images_are_named():
    assert loop._some([*range(20)]) == "0, 1, 2, 3, 4, 5, 6, 7 and 12 more"


def test_without_a_journal_nothing_is_written(training, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    training.fit()
    assert list(tmp_path.iterdir()) == []
