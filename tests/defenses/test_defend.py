import functools
import types
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from refine_jax.classifier import Classifier
from refine_jax.datasets.images import Split
from refine_jax.defenses import contract, refine, refine_seeds
from refine_jax.defenses.defend import defend, defend_seeds
from refine_jax.defenses.mapping import remap
from refine_jax.errors import SettingError
from refine_jax.networks import registry
from refine_jax.training.parallel import Execution

K = 4
SMALL = {"width": 2, "depth": 1, "epochs": 1, "batch_size": 4}


class Linear(nn.Module):
    num_classes: int
    dtype: Any = None

    @nn.compact
    def __call__(self, images, *, train=False):
        return nn.Dense(self.num_classes, dtype=self.dtype)(images.reshape(len(images), -1))


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
    with pytest.raises(AssertionError, match="uint8"):
        defended(images)


def test_streamed_or_rematerialized_it_comes_to_the_same(classifier, images):
    def fit(**execution):
        clean = Split.unlabeled(images)
        fitted = refine.fit(classifier, clean, refine.complete(SMALL), 0, K, None, Execution(**execution))
        return fitted.defended.unet_variables

    expected = fit(feed="device")
    chex.assert_trees_all_equal(fit(feed="host"), expected)
    chex.assert_trees_all_close(fit(remat=True), expected, rtol=1e-4, atol=1e-5)


def test_a_function_is_defended_as_the_same_network_is(classifier, images):
    def predict(images):
        return classifier(images)

    expected = defend(classifier, images, SMALL)
    defended = defend(predict, images, SMALL, num_classes=K)
    chex.assert_trees_all_close(defended.unet_variables, expected.unet_variables, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_equal(defended.permutation, expected.permutation)
    inputs = images / np.float32(255)
    np.testing.assert_allclose(defended(inputs), expected(inputs), rtol=1e-4, atol=1e-6)

    with_weights = defend(
        lambda variables, images: classifier.network.apply(variables, classifier.preprocess(images)),
        images,
        SMALL,
        variables=classifier.variables,
    )
    chex.assert_trees_all_close(with_weights.unet_variables, expected.unet_variables, rtol=1e-5, atol=1e-6)
    assert len(jax.tree.leaves(with_weights.classifier)) == len(jax.tree.leaves(classifier))


def test_networks_compute_in_the_precision_that_is_asked_for(classifier, images):
    variables = defend(classifier, images, SMALL, precision="bfloat16").unet_variables
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    chex.assert_tree_all_finite(variables)


@pytest.mark.parametrize(("backend", "precision"), [("cpu", "float32"), ("gpu", "bfloat16")])
def test_a_training_is_run_as_suits_the_machine(classifier, images, monkeypatch, backend, precision):
    seen = []

    def fit(*arguments, execution):
        seen.append(execution)
        return types.SimpleNamespace(defended=None)

    monkeypatch.setattr(refine, "fit", fit)
    monkeypatch.setattr(refine_seeds, "fit_seeds", lambda *arguments, execution: [fit(execution=execution)])
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    defend(classifier, images, SMALL)
    defend_seeds(classifier, images, SMALL, seeds=(0,))
    defend(classifier, images, SMALL, precision="float32")
    monkeypatch.undo()
    assert seen[:2] == [Execution(steps_per_call=None, precision=precision)] * 2
    assert seen[2].precision == "float32"


@pytest.mark.parametrize(
    ("precision", "message"),
    [("float16", "precision = 'float16': allowed: float32, bfloat16"), ("bfloat16", "float32 with a function")],
)
def test_a_precision_that_cannot_be_is_refused(classifier, images, precision, message):
    given = classifier if precision == "float16" else lambda images: classifier(images)
    with pytest.raises(SettingError, match=message):
        defend(given, images, SMALL, precision=precision)


def to_numpy(images):
    return np.asarray(images).sum(axis=(1, 2))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda images: images.mean(), "of 2 images this one makes"),
        (lambda images: images.mean((1, 2)).argmax(1), "of 2 images this one makes"),
        (lambda images: {"logits": images.mean((1, 2))}, "of 2 images this one makes"),
        (to_numpy, "to_numpy.*this one raises TracerArrayConversionError"),
        (lambda images: images.reshape(2, 5), "this one raises TypeError"),
        (lambda images: jax.nn.one_hot(images.mean((1, 2)).argmax(1), 3), "a gradient comes that is finite and not 0"),
        (lambda images: images.mean((1, 2)) / 0, "a gradient comes that is finite and not 0"),
        (lambda images: jax.nn.softmax(images.mean((1, 2))), "before a softmax: those of this one add up to 1"),
    ],
)
def test_a_function_that_is_no_classifier_is_refused_before_any_training(function, message, images, fitted):
    with pytest.raises(SettingError, match=message):
        defend(function, images, SMALL)
    assert fitted == []


def test_a_functions_own_preprocessing_cannot_come_before_the_unet(images):
    with pytest.raises(SettingError, match=r"defense\.unet_input = 'normalized': allowed: unit with a function"):
        defend(lambda images: images.mean((1, 2)), images, {**SMALL, "preset": "authors_code"})


def test_labels_are_no_settings(classifier, images, fitted):
    with pytest.raises(SettingError, match="settings = 'of type ndarray': allowed: a mapping of fields to values"):
        defend(classifier, images, np.zeros(len(images), int))
    assert fitted == []


def test_the_number_of_a_functions_classes_is_seen_and_another_is_refused(images, fitted):
    def predict(images):
        return images.mean((1, 2))

    defend(predict, images, SMALL)
    assert fitted[0][4] == 3
    with pytest.raises(SettingError, match="num_classes = 4: allowed: 3"):
        defend(predict, images, SMALL, num_classes=4)


@pytest.fixture
def fitted(monkeypatch):
    """What REFINE is asked to fit, instead of fitting it."""
    asked = []
    monkeypatch.setattr(refine, "fit", lambda *arguments, execution: asked.append(arguments) or contract.Fitted(None))
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


@pytest.mark.parametrize("change", [-1, 1])
def test_classes_are_as_many_as_the_classifier_has(classifier, images, fitted, change):
    with pytest.raises(SettingError, match=rf"num_classes = .*allowed: {classifier.num_classes}, as the classifier"):
        defend(classifier, images, SMALL, num_classes=classifier.num_classes + change)
    defend(classifier, images, SMALL, num_classes=classifier.num_classes)
    assert fitted[0][4] == classifier.num_classes


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dept": 2}, "defense.dept = 2: .*did you mean 'depth'"),
        ({"depth": 4}, "defense.depth = 4: allowed: 1 to 3 for images of 8 x 8"),
        ({"epochs": 0}, "defense.epochs = 0: allowed: .*1 or more"),
        ({"temperature": "0.1"}, "defense.temperature = '0.1': allowed: a number"),
        ({"mapping_seed": 1.5}, "defense.mapping_seed = 1.5: allowed: a whole number"),
        ({"clean_severity": 2.0, "clean_corruption": "contrast"}, "defense.clean_severity = 2.0: allowed: a whole"),
        ({"width": None}, "defense.width = None: allowed: a whole number"),
        ({"milestones": 3}, "defense.milestones = 3: allowed: a tuple"),
        ({"preset": "papr"}, "defense.preset = 'papr': .*did you mean 'paper'"),
    ],
)
def test_impossible_settings_are_refused_before_any_work(classifier, images, changed, message):
    with pytest.raises(SettingError, match=message):
        defend(classifier, images, {**SMALL, **changed})


def test_what_is_left_open_in_a_plain_mapping_is_the_presets():
    open_ = {"temperature": None, "loss": None, "unet_input": None, "mapping_seed": None}
    assert refine.complete({"preset": "authors_code", **open_}) == refine.complete({"preset": "authors_code"})
    assert refine.complete({"preset": "authors_code", "base_temperature": None})["base_temperature"] is None


@pytest.mark.parametrize("seed", [-1, 2**40])
def test_a_seed_that_is_none_is_refused(classifier, images, seed):
    with pytest.raises(SettingError, match=rf"seed = {seed}"):
        defend(classifier, images, SMALL, seed=seed)


@pytest.mark.parametrize("changed", [lambda x: x / np.float32(255), lambda x: x[0], lambda x: x[..., :1]])
def test_what_are_no_uint8_rgb_images_is_refused(classifier, images, changed):
    with pytest.raises(AssertionError):
        defend(classifier, changed(images), SMALL)
