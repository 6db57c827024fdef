import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from refine_jax import networks
from refine_jax.classifier import Classifier
from refine_jax.defenses.defend import defend
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
        ({"mean": 0.5}, r"mean = 0.5: allowed: three finite"),
        ({"std": "abc"}, r"std = 'abc': allowed: three finite"),
        ({"input_size": 0}, r"input_size = 0: allowed: None, a side"),
        ({"input_size": (32.0, 32.0)}, r"input_size = \(32.0, 32.0\): allowed: .*whole pixels"),
        ({"input_size": True}, r"input_size = True: allowed: .*whole pixels"),
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


def test_a_side_may_be_a_number_of_numpy():
    assert make(input_size=np.int64(8)).input_size == (8, 8)


def shapes(name, num_classes=3, **options):
    """Variables without values; nothing is compiled for them."""
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    return jax.eval_shape(networks.build(name, num_classes, **options).init, jax.random.key(0), images)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: shapes("resnet18", 4, width=2), r"linear/bias \(4,\), not \(3,\), params/linear/kernel \(16, 4\)"),
        (lambda: shapes("resnet18", width=4), r"bn1/mean \(4,\), not \(2,\), .* more"),
        (lambda: shapes("resnet34", width=2), r"layer1_2/bn1/mean is left over"),
        (lambda: {"params": shapes("resnet18", width=2)["params"]}, "batch_stats/bn1/mean is missing"),
        (lambda: {"conv1.weight": np.zeros((2, 3, 3, 3))}, "'params' are missing; .*torch_weights.convert makes them"),
        (lambda: None, "'params' are missing"),
    ],
)
def test_weights_of_another_network_are_refused_before_the_first_image(given, message):
    with pytest.raises(SettingError, match=f"variables = 'a .*': allowed: Flax variables of resnet18 .*{message}"):
        Classifier("resnet18", given(), 3, MEAN, STD, options={"width": 2})


def test_weights_are_held_against_the_network_once_and_not_when_the_tree_is_put_together(monkeypatch):
    classifier = Classifier("resnet18", shapes("resnet18", width=2), 3, MEAN, STD, options={"width": 2})
    monkeypatch.setattr("refine_jax.classifier._check_variables", None)
    again = jax.tree.map(lambda leaf: (leaf,), classifier)
    assert again.name == "resnet18"
    assert dict(classifier.computing_in("bfloat16").options) == {"width": 2, "dtype": "bfloat16"}


class Flat(nn.Module):
    """Has weights for each pixel."""

    num_classes: int

    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(self.num_classes)(images.reshape(len(images), -1))


def test_weights_that_depend_on_the_size_of_images_are_looked_at_where_it_is_known(monkeypatch):
    monkeypatch.setitem(registry.NETWORKS, "flat", functools.partial(Flat))
    variables = {"params": {"Dense_0": {"kernel": np.zeros((48, 3)), "bias": np.zeros(3)}}}
    assert Classifier("flat", variables, 3, MEAN, STD).input_size is None
    Classifier("flat", variables, 3, MEAN, STD, input_size=4)
    with pytest.raises(SettingError, match=r"Dense_0/kernel \(48, 3\), not \(75, 3\)"):
        Classifier("flat", variables, 3, MEAN, STD, input_size=5)


def test_a_vision_transformer_knows_the_size_of_its_images():
    Classifier("vit", shapes("vit"), 3, MEAN, STD)
    with pytest.raises(SettingError, match=r"params/patch_linear/kernel \(240, 512\), not"):
        Classifier("vit", shapes("vit"), 3, MEAN, STD, options={"image_size": 64})


def test_a_defense_is_of_as_many_classes_as_the_classifier():
    with pytest.raises(SettingError, match="num_classes = 7: allowed: 3, as the classifier has so many"):
        defend(make(), np.zeros((8, 16, 16, 3), np.uint8), num_classes=7)


def test_rematerialized_it_is_the_same_classifier_where_its_network_can_be():
    given = {"channels": "BGR", "input_size": 32, "options": {"width": 2}}
    classifier = Classifier("resnet18", shapes("resnet18", width=2), 3, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), **given)
    again = classifier.rematerialized()
    assert again.network == classifier.network.clone(remat=True)
    for field in ("name", "variables", "num_classes", "mean", "std", "channels", "input_size"):
        assert getattr(again, field) == getattr(classifier, field)
    simple = Classifier("vgg16", shapes("vgg16"), 3, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    assert simple.rematerialized() is simple
