import functools

import flax.linen as nn
import jax
import numpy as np
import pytest

from refine_jax import function_classifier
from refine_jax.classifier import Classifier
from refine_jax.networks import registry
from refine_jax.report import projection


class Two(nn.Module):
    """A feature map of two channels; the head is of no interest here."""

    num_classes: int = 2

    def setup(self):
        self.conv = nn.Conv(2, (1, 1))

    def features(self, images, train=False):
        return self.conv(images)

    def __call__(self, images, train=False):
        return self.features(images).mean(axis=(1, 2))


class Inverted:
    def transform(self, images):
        return 1 - images


jax.tree_util.register_pytree_node(Inverted, lambda _: ((), None), lambda *_: Inverted())


def test_features_are_those_of_the_network_averaged_over_places(monkeypatch):
    monkeypatch.setitem(registry.NETWORKS, "two", functools.partial(Two))
    variables = Two().init(jax.random.key(0), np.zeros((1, 2, 2, 3), np.float32))
    mean, std = np.array([0.1, 0.2, 0.3]), np.array([0.5, 0.4, 0.3])
    classifier = Classifier("two", variables, 2, tuple(mean), tuple(std))
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3)).astype(np.uint8)
    kernel, bias = (np.asarray(variables["params"]["conv"][name]) for name in ("kernel", "bias"))
    for defended, shown in ((None, images / 255), (Inverted(), 1 - images / 255)):
        expected = (((shown - mean) / std) @ kernel[0, 0] + bias).mean(axis=(1, 2))
        found = projection.feature_function(classifier, defended)(images)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_function_has_no_features():
    classifier = function_classifier.FunctionClassifier(lambda images: images, {}, 3, False)
    assert projection.feature_function(classifier) is None


def test_places_are_those_on_the_directions_of_largest_variance():
    rng = np.random.default_rng(0)
    benign, triggered = rng.normal(size=(30, 6)) * [5, 3, 1, 1, 1, 1], rng.normal(size=(20, 6)) + 4
    found = projection.project(benign, triggered)
    everything = np.concatenate([benign, triggered])
    centered = everything - everything.mean(axis=0)
    _, values, directions = np.linalg.svd(centered, full_matrices=False)
    places = np.concatenate([found.benign, found.triggered])
    np.testing.assert_allclose(np.abs(places), np.abs(centered @ directions[:2].T), atol=1e-8)
    np.testing.assert_allclose(found.explained, (values**2 / (values**2).sum())[:2])


def test_without_a_trigger_and_with_one_feature_there_are_places_too():
    found = projection.project(np.array([[1.0], [2.0], [6.0]]), None)
    assert found.triggered is None
    assert found.benign.shape == (3, 2)
    assert found.explained == pytest.approx([1, 0])


def test_images_are_taken_evenly():
    assert projection.evenly(3, 10).tolist() == [0, 1, 2]
    assert projection.evenly(9, 3).tolist() == [0, 4, 8]
