import functools
import types

import chex
import flax.linen as nn
import jax
import numpy as np
import pytest

from refine_jax import victim
from refine_jax.attacks.poisoning import Poisoned
from refine_jax.datasets.images import Dataset, Split
from refine_jax.errors import SettingError, WorkdirError
from refine_jax.files import hash_arrays
from refine_jax.networks import registry
from refine_jax.training import loop, parallel
from refine_jax.training.parallel import ONE_DEVICE, Execution

K, COUNT = 3, 10
SETTINGS = {
    **{"name": "tiny", "width": 2, "batch_size": 4, "epochs": 1, "learning_rate": 0.2, "optimizer": "sgd"},
    **{"momentum": 0.0, "weight_decay": 0.01, "schedule": "multistep", "milestones": (), "decay": 1.0},
}


class Linear(nn.Module):
    """Softmax regression on the mean of each channel, which no flip changes."""

    num_classes: int
    width: int = 1

    @nn.compact
    def __call__(self, images, *, train=False):
        return nn.Dense(self.num_classes, name="head")(images.mean(axis=(1, 2)))


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(registry.NETWORKS, "tiny", functools.partial(Linear))


@pytest.fixture
def dataset():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (COUNT, 4, 6, 3), np.uint8)
    split = Split(images, rng.integers(0, K, COUNT).astype(np.int32))
    return Dataset("made", split, split, tuple("abc"), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))


def poison(dataset):
    """Images 1 and 7 become class 0; the labels of all others stay."""
    indices = np.array([1, 7])
    labels = dataset.train.labels.copy()
    labels[indices] = 0
    return Poisoned(dataset.train.images, labels, indices, np.empty(0, int))


# Makes the poisoned images brighter, so that it shows which ones it was told.
ATTACK = types.SimpleNamespace(augment=lambda images, poisoned, key: images + 0.25 * poisoned[:, None, None, None])


def train(dataset, journal=None, seed=0, execution=ONE_DEVICE, **changed):
    return victim.train(dataset, ATTACK, poison(dataset), {**SETTINGS, **changed}, seed, journal, execution)


def softmax_regression_step(weights, bias, inputs, labels, rate, decay):
    """One step of gradient descent in numpy, weight decay on both."""
    logits = inputs @ weights + bias
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    errors = (probabilities - np.eye(K)[labels]) / len(labels)
    return weights - rate * (inputs.T @ errors + decay * weights), bias - rate * (errors.sum(axis=0) + decay * bias)


def test_a_step_is_cross_entropy_on_augmented_normalized_images_and_poisoned_labels(dataset, monkeypatch):
    started = []
    fit = loop.fit
    # A copy, because the step overwrites the state that it is given.
    monkeypatch.setattr(loop, "fit", lambda *given: started.append(jax.tree.map(np.array, given[2])) or fit(*given))
    outcome = train(dataset, batch_size=COUNT)

    poisoned = poison(dataset)
    images = poisoned.images / 255 + 0.25 * np.isin(np.arange(COUNT), poisoned.indices)[:, None, None, None]
    inputs = ((images - dataset.mean) / dataset.std).mean(axis=(1, 2))
    head = started[0].params["head"]
    weights, bias = softmax_regression_step(head["kernel"], head["bias"], inputs, poisoned.labels, 0.2, 0.01)
    np.testing.assert_allclose(outcome.state.params["head"]["kernel"], weights, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(outcome.state.params["head"]["bias"], bias, rtol=1e-5, atol=1e-6)


def test_the_last_batch_of_an_epoch_is_trained_on_though_it_is_smaller(dataset):
    assert train(dataset, epochs=2).state.step == 2 * 3


def test_it_is_compiled_once_for_each_size_of_a_batch(dataset, monkeypatch):
    compiled = []
    compile_training = parallel.compile_training
    monkeypatch.setattr(
        parallel, "compile_training", lambda *a, **k: compiled.append(compile_training(*a, **k)) or compiled[-1]
    )
    train(dataset, epochs=3)
    assert compiled[0]._cache_size() == 2


def test_the_seed_decides_everything(dataset):
    first, again, other = (train(dataset, seed=seed, batch_size=5).state.params for seed in (0, 0, 1))
    chex.assert_trees_all_equal(first, again)
    assert not np.array_equal(first["head"]["kernel"], other["head"]["kernel"])


def test_streamed_from_the_host_it_comes_to_the_same_bit_for_bit(dataset):
    on_device, streamed = (
        train(dataset, epochs=2, execution=Execution(feed=feed)).state for feed in ("device", "host")
    )
    chex.assert_trees_all_equal(streamed, on_device)


def test_the_network_is_asked_to_rematerialize(dataset):
    with pytest.raises(SettingError, match=r"tiny\.remat = True"):
        train(dataset, execution=Execution(remat=True))


def test_a_trained_victim_is_loaded_as_it_was_left(dataset, tmp_path):
    journal = loop.Journal(tmp_path / "checkpoints", tmp_path / "metrics.jsonl", {}, 1, 60.0)
    outcome = train(dataset, journal)
    sha256 = hash_arrays(outcome.state.variables)
    variables = victim.load(tmp_path, sha256)
    with pytest.raises(WorkdirError, match="are not those that were trained"):
        victim.load(tmp_path, "0" * 64)
    chex.assert_trees_all_equal(variables, jax.device_get(outcome.state.variables))
    classifier = victim.to_classifier(variables, dataset, SETTINGS)
    images = dataset.test.images / np.float32(255)
    inputs = ((images - dataset.mean) / dataset.std).mean(axis=(1, 2))
    head = variables["params"]["head"]
    np.testing.assert_allclose(classifier(images), inputs @ head["kernel"] + head["bias"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [("resnet18", {"width": 5}), ("vit", {"image_size": 32}), ("tiny", {"width": 5})],
)
def test_a_network_gets_the_options_that_it_takes(name, options):
    assert victim.network_options({"name": name, "width": 5}, (32, 32)) == options
