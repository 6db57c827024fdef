import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from refine_jax.classifier import Classifier
from refine_jax.defenses import refine
from refine_jax.defenses.defend import defend
from refine_jax.defenses.mapping import remap
from refine_jax.errors import SettingError
from refine_jax.networks import registry
from refine_jax.training.parallel import Execution

K = 4
SMALL = {"width": 2, "depth": 1, "epochs": 1, "batch_size": 4}


class Linear(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, images, *, train=False):
        return nn.Dense(self.num_classes)(images.reshape(len(images), -1))


@pytest.fixture
def classifier(monkeypatch):
    monkeypatch.setitem(registry.NETWORKS, "tiny", functools.partial(Linear))
    variables = Linear(K).init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    return Classifier("tiny", variables, K, (0.5,) * 3, (0.25,) * 3)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), np.uint8)


def test_one_call_gives_a_defended_classifier_and_leaves_the_classifier_as_it_was(classifier, images):
    before = jax.tree.map(np.array, classifier.variables)
    defended = defend(classifier, images, SMALL)
    chex.assert_trees_all_equal(classifier.variables, before)

    inputs = images / np.float32(255)
    probabilities = defended(inputs)
    assert probabilities.shape == (10, K)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    transformed = defended.transform(inputs)
    assert transformed.shape == inputs.shape
    assert 0 <= transformed.min() < transformed.max() <= 1
    expected = remap(jax.nn.softmax(classifier(transformed)), defended.permutation)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-5)
    assert sorted(defended.permutation.tolist()) == list(range(K))
    assert (defended.permutation != np.arange(K)).all()
    assert set(defended.unet_variables) == {"params", "batch_stats"}
    assert defended.image_size == (8, 8)


def test_streamed_or_rematerialized_it_comes_to_the_same(classifier, images):
    def fit(**execution):
        defended, _ = refine.fit(classifier, images, refine.complete(SMALL), 0, K, None, Execution(**execution))
        return defended.unet_variables

    expected = fit(feed="device")
    chex.assert_trees_all_equal(fit(feed="host"), expected)
    chex.assert_trees_all_close(fit(remat=True), expected, rtol=1e-4, atol=1e-5)


@pytest.fixture
def fitted(monkeypatch):
    """What REFINE is asked to fit, instead of fitting it."""
    asked = []
    monkeypatch.setattr(refine, "fit", lambda *arguments: asked.append(arguments) or (None, None))
    return asked


def test_a_mapping_and_a_config_dict_say_the_same(classifier, images, fitted):
    for kind in (dict, ml_collections.ConfigDict):
        defend(classifier, images, kind({**SMALL, "preset": "authors_code"}), seed=3)
    settings = [arguments[2] for arguments in fitted]
    assert settings[0] == settings[1]
    assert settings[0].items() >= {**SMALL, "loss": "binary_cross_entropy", "temperature": 0.07}.items()
    assert [arguments[3] for arguments in fitted] == [3, 3]


def test_without_settings_they_are_the_papers(classifier, fitted):
    defend(classifier, np.zeros((256, 16, 16, 3), np.uint8))
    (_, _, settings, seed, num_classes), *_ = fitted
    assert settings.items() >= {"width": 64, "depth": 4, "epochs": 150, "batch_size": 256, "sup_weight": 0.1}.items()
    assert (seed, num_classes) == (0, K)


def test_there_may_be_fewer_classes_than_the_classifier_was_made_for(classifier, images, fitted):
    defend(classifier, images, SMALL, num_classes=3)
    assert fitted[0][4] == 3


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dept": 2}, "defense.dept = 2: .*did you mean 'depth'"),
        ({"depth": 4}, "defense.depth = 4: allowed: 1 to 3 for images of 8 x 8"),
        ({"epochs": 0}, "defense.epochs = 0: allowed: .*1 or more"),
        ({"preset": "papr"}, "defense.preset = 'papr': .*did you mean 'paper'"),
    ],
)
def test_impossible_settings_are_refused_before_any_work(classifier, images, changed, message):
    with pytest.raises(SettingError, match=message):
        defend(classifier, images, {**SMALL, **changed})


@pytest.mark.parametrize("seed", [-1, 2**40])
def test_a_seed_that_is_none_is_refused(classifier, images, seed):
    with pytest.raises(SettingError, match=rf"seed = {seed}"):
        defend(classifier, images, SMALL, seed=seed)


@pytest.mark.parametrize("changed", [lambda x: x / np.float32(255), lambda x: x[0], lambda x: x[..., :1]])
def test_what_are_no_uint8_rgb_images_is_refused(classifier, images, changed):
    with pytest.raises(AssertionError):
        defend(classifier, changed(images), SMALL)
