import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from refine_jax.classifier import Classifier
from refine_jax.errors import SettingError
from refine_jax.networks import registry

MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)


class Tiny(nn.Module):
    """Logits that are weighted means of the channels."""

    num_classes: int
    scale: int = 1

    @nn.compact
    def __call__(self, images, *, train):
        assert not train
        return self.scale * nn.Dense(self.num_classes, name="head")(images.mean(axis=(1, 2)))


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(registry.NETWORKS, "tiny", functools.partial(Tiny))


def make(num_classes=3, **changed):
    variables = {"params": {"head": {"kernel": jnp.eye(3, num_classes), "bias": jnp.zeros(num_classes)}}}
    return Classifier("tiny", variables, num_classes, **{"mean": MEAN, "std": STD, **changed})


def random_images(*shape):
    return np.random.default_rng(0).random(shape, np.float32)


class LogitsTest(chex.TestCase):
    def setUp(self):
        super().setUp()
        registry.NETWORKS["tiny"] = functools.partial(Tiny)
        self.addCleanup(registry.NETWORKS.pop, "tiny")

    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters("RGB", "BGR")
    def test_images_are_normalized_in_the_networks_channel_order(self, channels):
        images = random_images(4, 5, 6, 3)
        logits = self.variant(lambda classifier, images: classifier(images))(make(channels=channels), images)
        # mean and std belong to the channels as the network takes them, the weights pick one channel each.
        seen = images[..., ::-1] if channels == "BGR" else images
        expected = ((seen.astype(np.float64) - MEAN) / STD).mean(axis=(1, 2))
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


def test_what_is_preprocessed_already_goes_in_as_it_is():
    images = random_images(2, 4, 4, 3)
    classifier = make()
    chex.assert_trees_all_equal(classifier(images), classifier.logits(classifier.preprocess(images)))
    np.testing.assert_allclose(classifier.logits(images), images.mean(axis=(1, 2)), rtol=1e-5)


@pytest.mark.parametrize(("input_size", "size"), [(8, (8, 8)), ((4, 6), (4, 6)), (None, (5, 7))])
def test_images_are_resized_to_what_the_network_takes(input_size, size):
    inputs = make(input_size=input_size).preprocess(random_images(2, 5, 7, 3))
    assert inputs.shape == (2, *size, 3)


def test_resizing_comes_before_normalizing_and_keeps_a_plain_image_plain():
    plain = np.full((1, 5, 5, 3), 0.6, np.float32)
    inputs = make(input_size=8).preprocess(plain)
    np.testing.assert_allclose(inputs[0, 3, 3], (0.6 - np.array(MEAN)) / STD, rtol=1e-5)
    np.testing.assert_allclose(inputs, jnp.broadcast_to(inputs[:, :1, :1], inputs.shape), rtol=1e-5)


def test_bfloat16_images_stay_bfloat16():
    assert make().preprocess(jnp.zeros((1, 4, 4, 3), jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("images", [np.zeros((4, 4, 3), np.float32), np.zeros((1, 3, 4, 4), np.float32)])
def test_wrong_shapes_are_refused(images):
    with pytest.raises(AssertionError):
        make()(images)


def test_uint8_images_are_refused():
    with pytest.raises(AssertionError, match="uint8"):
        make()(np.zeros((1, 4, 4, 3), np.uint8))


def test_its_leaves_are_the_weights_alone():
    classifier = make()
    chex.assert_trees_all_equal(jax.tree.leaves(classifier), jax.tree.leaves(classifier.variables))
    doubled = jax.tree.map(lambda leaf: 2 * leaf, classifier)
    assert (doubled.name, doubled.mean, doubled.num_classes) == ("tiny", MEAN, 3)
    images = random_images(2, 4, 4, 3)
    np.testing.assert_allclose(doubled(images), 2 * classifier(images), rtol=1e-6)


def test_other_weights_do_not_compile_it_anew_and_other_preprocessing_does():
    traced = []

    @jax.jit
    def predict(classifier, images):
        traced.append(1)
        return classifier(images)

    images = random_images(2, 4, 4, 3)
    predict(make(), images)
    predict(jax.tree.map(lambda leaf: 2 * leaf, make()), images)
    assert len(traced) == 1
    predict(make(mean=(0, 0, 0)), images)
    assert len(traced) == 2


def test_options_reach_the_network():
    images = random_images(2, 4, 4, 3)
    np.testing.assert_allclose(make(options={"scale": 3})(images), 3 * make()(images), rtol=1e-6)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mean": (0.5, 0.5)}, r"mean = \(0.5, 0.5\): allowed: three"),
        ({"mean": (0.5, float("nan"), 0.5)}, "mean = .*nan.*: allowed: three finite"),
        ({"std": (0.5,)}, r"std = \(0.5,\): allowed: three"),
        ({"std": (0.5, 0.0, 0.5)}, "std = .*: allowed: three .* above 0"),
        ({"std": (0.5, float("nan"), 0.5)}, "std = .*nan.*: allowed"),
        ({"channels": "BRG"}, "channels = 'BRG': allowed: RGB, BGR"),
        ({"input_size": 0}, r"input_size = \(0, 0\): allowed: None, a side"),
        ({"input_size": (3, 32, 32)}, r"input_size = \(3, 32, 32\): allowed"),
        ({"options": {"scael": 3}}, "tiny.scael = 3: .*scale.*did you mean 'scale'"),
        ({"num_classes": 0}, "num_classes = 0"),
    ],
)
def test_the_impossible_is_refused_before_the_first_image(changed, message):
    with pytest.raises(SettingError, match=message):
        make(**changed)


def test_an_unknown_network_is_answered_with_the_nearest():
    with pytest.raises(SettingError, match=r"resnet_18.*did you mean 'resnet18'"):
        Classifier("resnet_18", {}, 10, MEAN, STD)


def test_rematerialized_it_is_the_same_classifier_where_its_network_can_be():
    given = {"channels": "BGR", "input_size": 32, "options": {"width": 2}}
    classifier = Classifier("resnet18", {"params": {}}, 3, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), **given)
    again = classifier.rematerialized()
    assert again.network == classifier.network.clone(remat=True)
    for field in ("name", "variables", "num_classes", "mean", "std", "channels", "input_size"):
        assert getattr(again, field) == getattr(classifier, field)
    simple = Classifier("vgg16", {"params": {}}, 3, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    assert simple.rematerialized() is simple
