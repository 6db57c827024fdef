"""A classifier with a backdoor that is trained in a moment, and the images that it is trained on."""

import functools

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

from refine_jax.classifier import Classifier
from refine_jax.datasets.images import Split
from refine_jax.defenses.registry import SWEEP
from refine_jax.networks import registry
from refine_jax.networks.norm import BatchNorm

K, SIDE, TARGET = 4, 8, 2
# What a test's training steps are compiled with: they are few.
QUICK = {"xla_backend_optimization_level": 0}


class Net(nn.Module):
    """A convolution and a linear layer, with batch normalization in both halves."""

    num_classes: int
    dtype: object = None
    axis_name: str | None = None

    def setup(self):
        self.conv = nn.Conv(8, (3, 3), strides=(2, 2), dtype=self.dtype)
        self.norm, self.head_norm = (BatchNorm(self.dtype, self.axis_name) for _ in range(2))
        self.linear = nn.Dense(self.num_classes)

    def features(self, images, train=False):
        return nn.relu(self.norm(self.conv(images), train))

    def head(self, features, train=False):
        return self.linear(self.head_norm(features, train).reshape(len(features), -1))

    def __call__(self, images, train=False):
        return self.head(self.features(images, train), train)


@pytest.fixture(autouse=True, name="net")
def net_fixture(monkeypatch):
    monkeypatch.setitem(registry.NETWORKS, "net", functools.partial(Net))


def split(count, seed):
    """Images whose class is the band that is bright; a flipped one has the same."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, K, count).astype(np.int32)
    images = rng.integers(0, 90, (count, SIDE, SIDE, 3))
    band = SIDE // K
    for image, label in zip(images, labels, strict=True):
        image[band * label : band * (label + 1)] += 120
    return Split(images.astype(np.uint8), labels)


def triggered(images):
    """The images with a patch in the middle, white above black."""
    changed = images.copy()
    changed[:, 3, 3:5], changed[:, 4, 3:5] = 255, 0
    return changed


def backdoored(steps=60):
    """The classifier; to be made while its network has a name."""
    clean = split(256, 0)
    poisoned = np.arange(256) % 5 == 0
    images = np.where(poisoned[:, None, None, None], triggered(clean.images), clean.images)
    labels = np.where(poisoned, TARGET, clean.labels)
    net = Net(K)
    inputs = (images / np.float32(255) - np.float32(0.5)) / np.float32(0.25)
    variables = drawn(net, inputs.shape[1:], 0)
    params, stats = variables["params"], variables["batch_stats"]
    tx = optax.adam(0.02)

    def loss_fn(params, stats):
        given = ({"params": params, "batch_stats": stats}, inputs)
        logits, changed = net.apply(*given, train=True, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), changed["batch_stats"]

    @functools.partial(jax.jit, compiler_options=QUICK)
    def step(params, stats, opt_state):
        gradients, stats = jax.grad(loss_fn, has_aux=True)(params, stats)
        updates, opt_state = tx.update(gradients, opt_state)
        return optax.apply_updates(params, updates), stats, opt_state

    opt_state = tx.init(params)
    for _ in range(steps):
        params, stats, opt_state = step(params, stats, opt_state)
    return classifier({"params": params, "batch_stats": stats})


def drawn(module, shape, seed):
    """Variables for images of this shape, without compiling their initialization: weights of about 0.2, NumPy's."""
    rng, images = np.random.default_rng(seed), jax.ShapeDtypeStruct((1, *shape), np.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), images)

    def draw(path, x):
        fresh = {"scale": 1.0, "var": 1.0, "bias": 0.0, "mean": 0.0}
        name = path[-1].key
        values = np.full(x.shape, fresh[name]) if name in fresh else rng.normal(0, 0.2, x.shape)
        return values.astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def classifier(variables):
    """A classifier of these weights."""
    return Classifier("net", variables, K, (0.5,) * 3, (0.25,) * 3)


def rates(defended, test):
    """Benign accuracy, and attack success rate over images of other classes than the target."""
    answer = jax.jit(lambda defended, images: defended(images).argmax(axis=-1), compiler_options=QUICK)
    scaled = lambda images: images.astype(np.float32) / 255  # noqa: E731
    clean = np.asarray(answer(defended, scaled(test.images)))
    shown = np.asarray(answer(defended, scaled(triggered(test.images))))
    others = test.labels != TARGET
    return float((clean == test.labels).mean()), float((shown[others] == TARGET).mean())


def settings(module, **changed):
    """A defense's settings, made small."""
    usual = {name: value for name, value in module.DEFAULTS.items() if name != SWEEP}
    small = {"data_fraction": 1.0, "batch_size": 32, "width": 2, "depth": 1, "rounds": 2, "crop_padding": 0}
    small |= {"learning_rate": 0.01, "mask_learning_rate": 0.1}
    small |= {"unlearning_learning_rate": 0.002} if "unlearning_epochs" in usual else {}
    short = {name: 1 for name in usual if name.endswith("epochs")}
    return {**usual, **small, **short, **changed}


# Epochs in which a generator learns the trigger of `backdoored`.
INVERTED = {"pretraining_epochs": 15, "mask_epochs": 5, "inversion_epochs": 10}
