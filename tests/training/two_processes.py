"""One of several processes that train together; run by test_processes.py: PORT COUNT INDEX FOLDER."""

import json
import pathlib
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np

from refine_jax import mapped
from refine_jax.datasets.feed import Feed
from refine_jax.keys import named_key
from refine_jax.training import loop, processes
from refine_jax.training.interruption import Interrupted
from refine_jax.training.journal import Journal
from refine_jax.training.optimizer import create_optimizer, create_schedule
from refine_jax.training.parallel import Execution, Step
from refine_jax.training.state import TrainState

# Two batches of eight and one of three an epoch.
COUNT, BATCH = 19, 8
SETTINGS = {
    **{"optimizer": "sgd", "momentum": 0.9, "weight_decay": 1e-3, "schedule": "multistep", "learning_rate": 0.1},
    **{"milestones": (0.5,), "decay": 0.5, "epochs": 2},
}


def make(axis_name):
    """A linear regression on inputs with noise that is drawn for the whole batch."""

    def step(state, data, batch):
        indices = batch["indices"]
        key = named_key(data["key"], state.step)
        noise = mapped.draw(lambda n: jax.random.normal(key, (n, 4)), len(indices), axis_name)
        inputs = data["inputs"][indices] + 0.1 * noise
        loss_fn = lambda params: jnp.mean((inputs @ params["kernel"] - data["targets"][indices]) ** 2)  # noqa: E731
        loss, gradients = mapped.average(jax.value_and_grad(loss_fn)(state.params), axis_name)
        return state.updated(OPTIMIZER, gradients, {}), {"loss": loss}

    return step


OPTIMIZER = create_optimizer(SETTINGS, create_schedule(SETTINGS, 3))


def problem():
    """State at the start, data, feed."""
    rng = np.random.default_rng(0)
    data = {"inputs": rng.normal(size=(COUNT, 4)).astype(np.float32), "key": jax.random.key(5)}
    data["targets"] = data["inputs"] @ rng.normal(size=(4, 2)).astype(np.float32)
    params = {"kernel": np.zeros((4, 2), np.float32)}
    state = TrainState(np.int32(0), params, {}, jax.device_get(OPTIMIZER.init(params)))
    return state, data, Feed(COUNT, BATCH, jax.random.key(1), keep_last=True)


class Disturbed(Step):
    """In the second step: process 1 is asked to stop, or process 0 fails."""

    mode = ""

    def __call__(self, state, data, batch):
        if int(state.step) == 1 and self.mode == "stop" and not processes.is_first():
            signal.raise_signal(signal.SIGTERM)
        if int(state.step) == 1 and self.mode == "fail" and processes.is_first():
            processes.leave_at_once(2)
        return super().__call__(state, data, batch)


def train_alone():
    """What one device comes to."""
    state, data, feed = problem()
    step = jax.jit(make(None))
    for batch in feed.batches(0, 6):
        state, _ = step(state, data, batch)
    return state.params["kernel"]


def train(workdir, mode=""):
    """Trains in a working directory; returns what there is to say of it."""
    state, data, feed = problem()
    schedule = create_schedule(SETTINGS, feed.steps_per_epoch)
    with processes.own_workdir(workdir) as own:
        own = pathlib.Path(own)
        own.mkdir(exist_ok=True)
        journal = Journal(own / "checkpoints", own / "metrics.jsonl", {}, 1, 60.0)
        step = Disturbed(make, Execution(devices=None))
        step.mode = mode
        try:
            outcome = loop.fit("victim", step, state, data, feed, schedule, journal)
        except Interrupted as stopped:
            return {"stopped": str(stopped)}
        kernel = jax.device_get(outcome.state.params["kernel"])
        return {
            "steps": int(outcome.state.step),
            "apart": float(abs(kernel - train_alone()).max()),
            "own": str(own),
        }


def main():
    """Trains, is stopped, goes on, and prints a JSON object; then trains something else, and one process fails."""
    port, count, index, folder = sys.argv[1:]
    processes.connect(f"localhost:{port}", int(count), int(index))
    workdir = pathlib.Path(folder, "run")
    said = {"devices": jax.device_count(), **train(workdir, "stop"), **train(workdir)}
    print("said", json.dumps(said), flush=True)
    train(pathlib.Path(folder, "failed"), "fail")


if __name__ == "__main__":
    main()
