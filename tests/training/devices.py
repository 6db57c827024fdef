"""Trains tiny networks on several devices and on one, and prints how far apart they come; run by test_parallel.py."""

import functools
import json
import pathlib
import signal
import sys
import tempfile

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from refine_jax import adaptive, mapped, victim
from refine_jax.classifier import Classifier
from refine_jax.defenses import refine
from refine_jax.networks import registry
from refine_jax.networks.norm import BatchNorm
from refine_jax.networks.unet import UNet
from refine_jax.training import loop
from refine_jax.training.interruption import Interrupted
from refine_jax.training.journal import Journal
from refine_jax.training.optimizer import create_optimizer, create_schedule
from refine_jax.training.parallel import Execution, Step
from refine_jax.training.state import TrainState
from tests.training import two_processes

K, COUNT, SIDE, BATCH = 3, 13, 8, 8
# One step of plain gradient descent: the parameters move by the gradient.
SETTINGS = {
    **{"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "schedule": "multistep", "learning_rate": 1.0},
    **{"milestones": (), "decay": 1.0, "epochs": 3},
}
OBJECTIVE = refine.Objective.of({"preset": "authors_code"})


class Net(nn.Module):
    """A convolution, a normalization and a linear layer."""

    num_classes: int
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, train=False):
        x = BatchNorm(None, self.axis_name)(nn.Conv(4, (3, 3))(images), train)
        return nn.Dense(self.num_classes)(nn.relu(x).mean(axis=(1, 2)))


registry.NETWORKS["tiny"] = functools.partial(Net)


def noisy(images, poisoned, key):
    """An attack's augmentation that draws for every image of the batch that it sees."""
    noise = jax.random.randint(key, (len(images), 1, 1, 1), -20, 21) / jnp.float32(128)
    return images + noise * (1 + poisoned[:, None, None, None])  # rounded once, however it is compiled


def start(module, dtype, tx):
    """The state of a network with random numbers in all arrays; none is compiled to draw them."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 3), jnp.float32))

    def draw(path, leaf):
        values = 0.3 * rng.normal(size=leaf.shape)
        return np.asarray(1 + abs(values) if path[-1].key in ("scale", "var") else values, dtype)

    variables = jax.tree_util.tree_map_with_path(draw, shapes)
    optimizer = jax.eval_shape(tx.init, variables["params"])
    return TrainState(
        np.int32(0),
        variables["params"],
        variables["batch_stats"],
        jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), optimizer),
    )


def problems(dtype):
    """Name to (how the step is made, state at its start, data)."""
    rng = np.random.default_rng(0)
    tx = create_optimizer(SETTINGS, create_schedule(SETTINGS, 2))
    colors = rng.integers(40, 216, (COUNT, 1, 1, 3))
    images = jnp.asarray(colors + rng.integers(-40, 41, (COUNT, SIDE, SIDE, 3)), jnp.uint8)
    common = {"images": images, "key": jax.random.key(7)}
    net = Net(K)
    labels = {"labels": jnp.asarray(rng.integers(0, K, COUNT)), "is_poisoned": jnp.arange(COUNT) % 4 == 0}
    statistics = {"mean": jnp.asarray([0.4, 0.5, 0.6], dtype), "std": jnp.full(3, 0.25, dtype)}
    made = {
        "victim": (
            lambda axis: victim.train_step(mapped.on_axis(net, axis), tx, noisy, axis),
            start(net, dtype, tx),
            common | labels | statistics,
        )
    }
    unet = UNet(width=2, depth=1)
    state = start(net, dtype, tx)
    # Between its mean answers, the classifier tells these images apart: there are several pseudo-labels.
    logits = net.apply(state.variables, (images / np.float32(255) - 0.5) * 4)
    state.params["Dense_0"]["bias"] = -np.asarray(logits, dtype).mean(axis=0)
    classifier = Classifier("tiny", state.variables, K, (0.5,) * 3, (0.25,) * 3)
    assert len(np.unique(classifier(images / np.float32(255)).argmax(axis=1))) > 1
    own = {"updates": "turns", "weight": 0.5}
    freeze = lambda variables: Classifier("tiny", variables, K, (0.4, 0.5, 0.6), (0.25,) * 3)  # noqa: E731
    beside = adaptive.AdaptiveState(**vars(start(net, dtype, tx)), unet=start(unet, dtype, tx))
    made["adaptive"] = (
        lambda axis: adaptive.train_step(
            mapped.on_axis(net, axis), tx, noisy, mapped.on_axis(unet, axis), tx, freeze, own, axis
        ),
        beside,
        common | labels | statistics | {"mapping": jnp.asarray([1, 2, 0]), "is_changed": jnp.arange(COUNT) % 3 == 0},
    )
    made["refine"] = (
        lambda axis: refine.train_step(mapped.on_axis(unet, axis), tx, OBJECTIVE, axis),
        start(unet, dtype, tx),
        common | {"classifier": classifier, "permutation": jnp.asarray([1, 2, 0])},
    )
    return made


def one_step(problem, devices, indices):
    """Loss, gradient and moved statistics of a step."""
    make, state, data = problem
    step = Step(make, Execution(devices=devices))
    before = state.params
    state, metrics = step(step.place(state), step.place(data), {"indices": indices})
    gradient = jax.tree.map(lambda old, new: old - np.asarray(new), before, state.params)
    return jax.device_get(metrics), gradient, jax.device_get(state.batch_stats)


def distance(tree, expected):
    """Relative distance, in the sum of squares, of two trees of arrays."""
    tree, expected = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(t)]) for t in (tree, expected))
    return float(np.linalg.norm(tree - expected) / np.linalg.norm(expected))


def compare(dtype, cases):
    """Distances of metrics, gradient and statistics from one device's; a case is (problem, devices, batch's size)."""
    made, alone, found = problems(dtype), {}, []
    for name, devices, size in cases:
        batch = (5 * np.arange(size, dtype=np.int32) + 2) % COUNT
        if (name, size) not in alone:
            alone[name, size] = one_step(made[name], 1, batch)
        apart = map(distance, one_step(made[name], devices, batch), alone[name, size])
        found.append(
            {"case": [name, devices, size], **dict(zip(("metrics", "gradient", "statistics"), apart, strict=True))}
        )
    return found


class Interrupting(Step):
    """Is asked to stop in the step of the number `stop_after`."""

    stop_after: int | None

    def __call__(self, state, data, batch):
        if int(state.step) + 1 == self.stop_after:
            signal.raise_signal(signal.SIGTERM)
        return super().__call__(state, data, batch)


def stop_and_go_on(folder):
    """A regression that is stopped on four devices and goes on on two, beside the same one on one device."""
    state, data, feed = two_processes.problem()
    schedule = create_schedule(two_processes.SETTINGS, feed.steps_per_epoch)
    journal = Journal(folder / "checkpoints", folder / "metrics.jsonl", {}, 1, 60.0)

    def fit(devices, stop_after=None):
        step = Interrupting(two_processes.make, Execution(devices=devices))
        step.stop_after = stop_after
        return loop.fit("victim", step, state, data, feed, schedule, journal).state

    try:
        fit(4, stop_after=2)
    except Interrupted:
        resumed = fit(2)
    return {
        "steps": int(resumed.step),
        "params": float(abs(jax.device_get(resumed.params["kernel"]) - two_processes.train_alone()).max()),
    }


def main():
    """Prints a JSON object."""
    with jax.enable_x64(True):
        # Three images cannot be divided.
        double = compare(np.float64, [("victim", 2, 8), ("victim", 4, 3), ("refine", 4, 8), ("adaptive", 4, 8)])
    # REFINE, with the other objective, is compared in float32 by test_processes.py.
    single = compare(np.float32, [("victim", 2, 8)])
    with tempfile.TemporaryDirectory() as folder:
        resumed = stop_and_go_on(pathlib.Path(folder))
    json.dump({"float64": double, "float32": single, "resumed": resumed}, sys.stdout)


if __name__ == "__main__":
    main()
