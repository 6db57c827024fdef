"""REFINE with parts of it left out or made otherwise; with the defaults it is what it was."""

import functools
import json
import pathlib
import runpy
import types

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refine_jax import settings
from refine_jax.classifier import Classifier
from refine_jax.datasets import corruptions
from refine_jax.datasets.images import Dataset, Split
from refine_jax.defenses import mapping, refine, refine_settings, registry
from refine_jax.defenses.defend import defend
from refine_jax.errors import SettingError
from refine_jax.keys import named_key
from refine_jax.losses import l2_normalize, supervised_contrastive
from refine_jax.networks import registry as networks
from refine_jax.sweep import plan, state
from tests.sweep.fake import make

K, SIDE = 4, 8
SMALL = {"width": 2, "depth": 1, "epochs": 1, "batch_size": 4}
ROOT = pathlib.Path(__file__).parents[2]


class Whole(nn.Module):
    """A network of one piece."""

    num_classes: int

    @nn.compact
    def __call__(self, images, *, train=False):
        return nn.Dense(self.num_classes)(images.reshape(len(images), -1))


class Halves(nn.Module):
    """A network whose feature map is the image at a quarter of its size, in five channels."""

    num_classes: int

    def setup(self):
        self.convolution = nn.Conv(5, (2, 2), strides=(2, 2))
        self.linear = nn.Dense(self.num_classes)

    def __call__(self, images, *, train=False):
        return self.head(self.features(images))

    def features(self, images, train=False):
        return nn.relu(self.convolution(images))

    def head(self, features, train=False):
        return self.linear(features.mean(axis=(1, 2)))


class Tint(nn.Module):
    """Takes the U-Net's place, and is compiled sooner."""

    @nn.compact
    def __call__(self, images, train=False):
        self.variable("batch_stats", "mean", jnp.zeros, 3)
        return nn.Conv(3, (3, 3), bias_init=nn.initializers.constant(0.5))(images)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (6, SIDE, SIDE, 3), np.uint8)


@pytest.fixture
def build(monkeypatch):
    def build(network):
        monkeypatch.setitem(networks.NETWORKS, "tiny", functools.partial(network))
        variables = jax.jit(network(K).init)(jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 3)))
        return Classifier("tiny", variables, K, (0.4, 0.5, 0.6), (0.2, 0.3, 0.2))

    return build


@pytest.mark.parametrize("unet_input", refine.UNET_INPUTS)
def test_the_contrastive_loss_compares_what_it_is_told_to(build, images, unet_input):
    classifier, unet = build(Halves), Tint()
    inputs = images / np.float32(255)
    variables = jax.jit(unet.init)(jax.random.key(1), inputs)
    permutation = jnp.array([1, 2, 3, 0])

    @jax.jit
    def values(variables, classifier):
        """Of each kind, what the objective says and what the contrastive loss is by its definition."""
        given = {"unet_input": unet_input, "sup_weight": 0.5}
        found = {"default": refine.objective(unet, variables, classifier, inputs, permutation, given)}
        expected = {}
        for name in ("pixels", "features", "logits"):
            changed = {**given, "contrastive_features": name}
            found[name] = refine.objective(unet, variables, classifier, inputs, permutation, changed)
            aux = found[name][1]
            shown = aux["transformed"] if unet_input == "normalized" else classifier.preprocess(aux["transformed"])
            feature_map = classifier.network.apply(classifier.variables, shown, method="features")
            assert feature_map.shape == (6, SIDE // 2, SIDE // 2, 5)
            logits = classifier.logits(shown)
            compared = {
                "pixels": aux["transformed"].reshape(6, -1),
                "features": feature_map.mean(axis=(1, 2)),
                "logits": logits,
            }[name]
            twice = jnp.stack([l2_normalize(compared)] * 2, axis=1)
            expected[name] = supervised_contrastive(twice, aux["pseudo_labels"], 0.1), logits
        return found, expected

    found, expected = values(variables, classifier)
    for name, (contrastive, logits) in expected.items():
        total, aux = found[name]
        np.testing.assert_allclose(aux["contrastive"], contrastive, rtol=1e-5)
        np.testing.assert_allclose(total, aux["classification"] + 0.5 * aux["contrastive"], rtol=1e-6)
        np.testing.assert_allclose(aux["logits"], logits, rtol=1e-5, atol=1e-6)
    assert found["default"][0] == found["pixels"][0]
    assert len({round(float(found[name][0]), 4) for name in expected}) == 3


@pytest.mark.parametrize("asked", refine_settings.PSEUDO_LABELS)
def test_pseudo_labels_are_of_the_image_that_is_asked_for(build, images, asked, monkeypatch):
    classifier, unet, permutation = build(Whole), Tint(), jnp.array([1, 2, 3, 0])
    variables = jax.jit(unet.init)(jax.random.key(1), images / np.float32(255))
    monkeypatch.setattr(refine, "augment", lambda images, key, axis_name: 1 - images)
    monkeypatch.setattr(refine, "update", lambda *given, axis_name: given)
    step = refine.train_step(unet, None, refine.Objective.of({"pseudo_labels": asked}))
    data = {
        "images": jnp.asarray(images),
        "classifier": classifier,
        "permutation": permutation,
        "key": jax.random.key(0),
    }
    _, _, _, _, shown, _, settings, originals = step(
        types.SimpleNamespace(step=0), data, {"indices": jnp.arange(len(images))}
    )
    np.testing.assert_allclose(shown, 1 - images / np.float32(255), atol=1e-6)
    _, aux = refine.objective(unet, variables, classifier, shown, permutation, settings, originals=originals)
    plain, inverted = (np.asarray(classifier(x).argmax(axis=-1)) for x in (1 - shown, shown))
    assert plain.tolist() != inverted.tolist()
    assert aux["pseudo_labels"].tolist() == (inverted if asked == "augmented" else plain).tolist()


def test_features_have_to_be_there(build, images):
    wanted = {**SMALL, "contrastive_features": "features"}
    message = r"defense\.contrastive_features = 'features': allowed: pixels or logits with a classifier that does not"
    whole = build(Whole)
    with pytest.raises(SettingError, match=message):
        defend(whole, images, wanted)
    with pytest.raises(SettingError, match=message):
        defend(lambda images: whole(images), images, wanted)


class StoppedError(Exception):
    """Before the training."""


def test_a_mapping_is_drawn_from_a_seed_of_its_own_and_changes_nothing_else(build, images, monkeypatch):
    begun = []

    def begin(stage, step, state, data, feed, *others):
        rest = [jax.random.key_data(state), jax.random.key_data(data["key"]), feed.indices(0)]
        begun.append((data["permutation"].tolist(), rest))
        raise StoppedError

    monkeypatch.setattr(refine, "create_train_state", lambda unet, tx, key, size: key)
    monkeypatch.setattr(refine.loop, "fit", begin)

    def start(changed, seed=0):
        with pytest.raises(StoppedError):
            defend(classifier, images, {**SMALL, **changed}, seed=seed)
        return begun[-1]

    classifier = build(Whole)
    found = [
        start(changed)
        for changed in ({}, {"mapping_seed": 0}, {"mapping_seed": 3}, {"mapping": "shift"}, {"mapping": "identity"})
    ]
    drawn = [mapping.derangement(named_key(seed, "refine/mapping"), K).tolist() for seed in (0, 3)]
    assert [permutation for permutation, _ in found] == [drawn[0], drawn[0], drawn[1], [1, 2, 3, 0], [0, 1, 2, 3]]
    assert drawn[0] != drawn[1]
    for _, rest in found:
        chex.assert_trees_all_equal(rest, found[0][1])
    assert start({}, seed=3)[0] == drawn[1]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mapping": "shfit"}, r"defense\.mapping = 'shfit': .*derangement, shift, identity.*did you mean 'shift'"),
        ({"mapping_seed": -1}, r"defense\.mapping_seed = -1: allowed: 0 to 4294967295"),
        (
            {"mapping_seed": 2, "mapping": "shift"},
            r"defense\.mapping_seed = 2: allowed: nothing with defense\.mapping=sh",
        ),
        ({"clean_corruption": "fog"}, r"defense\.clean_corruption = 'fog': .*none, gaussian_noise, shot_noise"),
        ({"clean_severity": 0}, r"defense\.clean_severity = 0: allowed: 1 to 5"),
        ({"clean_classes": (1,)}, r"defense\.clean_classes = \(1,\): allowed: nothing, as the labels .* not known"),
        ({"pseudo_labels": "x"}, r"defense\.pseudo_labels = 'x': .*augmented, original"),
        ({"contrastive_features": "x"}, r"defense\.contrastive_features = 'x': .*pixels, features, logits"),
    ],
)
def test_what_cannot_be_is_refused(build, images, changed, message):
    with pytest.raises(SettingError, match=message):
        defend(build(Whole), images, {**SMALL, **changed})


def dataset_of(labels):
    """A data set whose training images are gray, number i of level i."""
    levels = np.arange(len(labels), dtype=np.uint8)
    images = np.broadcast_to(levels[:, None, None, None], (len(labels), 16, 16, 3)).copy()
    split = Split(images, np.asarray(labels, np.int32))
    return Dataset("made", split, split, tuple("abcd"), (0.5,) * 3, (0.2,) * 3)


def test_classes_are_chosen_by_labels_that_the_defense_does_not_see():
    dataset, section = dataset_of([0, 3, 1, 1, 2, 0]), refine.complete({"clean_classes": (0, 2)})
    clean = registry.clean_images("refine", section, dataset.train, K)
    assert clean.images[:, 0, 0, 0].tolist() == [0, 4, 5]
    assert not clean.has_labels
    whole = registry.clean_images("refine", refine.complete({}), dataset.train, K)
    assert whole.images is dataset.train.images
    assert not whole.has_labels
    assert registry.clean_images("bti_dbf_p", settings.default().defense, dataset.train, K) is dataset.train


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ((0, 4), r"defense\.clean_classes = \(0, 4\): allowed: one or more classes, each once, 0 to 3"),
        ((1, 1), r"defense\.clean_classes = \(1, 1\): allowed: one or more classes, each once"),
        ((), r"defense\.clean_classes = \(\): allowed: one or more"),
        (("a",), r"defense\.clean_classes = \('a',\): allowed: one or more"),
        ((1,), r"defense\.batch_size = 4: allowed: at most the 2 clean images"),
    ],
)
def test_classes_that_cannot_be_are_refused_before_any_work(classes, message):
    config = settings.default()
    config.victim.batch_size, config.defense.batch_size, config.defense.clean_classes = 2, 4, classes
    with pytest.raises(SettingError, match=message):
        settings.check(settings.complete(config), dataset_of([0, 3, 1, 1, 2, 0]))


def test_corrupted_images_are_what_it_is_fitted_to(build, images, monkeypatch):
    begun = []

    def begin(stage, step, state, data, feed, *others):
        begun.append(np.asarray(data["images"]))
        raise StoppedError

    monkeypatch.setattr(refine, "create_train_state", lambda *_: None)
    monkeypatch.setattr(refine.loop, "fit", begin)
    for changed in ({}, {"clean_corruption": "gaussian_noise", "clean_severity": 2}):
        with pytest.raises(StoppedError):
            defend(build(Whole), images, {**SMALL, **changed}, seed=5)
    np.testing.assert_array_equal(begun[0], images)
    key = named_key(5, "refine/corruption")
    np.testing.assert_array_equal(begun[1], corruptions.Corrupted(images, "gaussian_noise", 2, key)[:])


def older(name):
    """Settings of a run that was made before any of these fields were there."""
    return json.loads((ROOT / "results" / "digits" / "seed_0" / name).read_text())


def test_outcomes_of_before_are_known_still(tmp_path):
    kept = older("settings.json")["defense"]
    assert not {*refine.LATER} & {*kept}
    config = runpy.run_path(str(ROOT / "configs" / "digits.py"))["get_config"]()
    now = settings.complete(config)["defense"]
    assert registry.identifying("refine", now) == {name: kept[name] for name in refine.DEFAULTS if name in kept}
    config.defense.mapping = "shift"
    assert registry.identifying("refine", settings.complete(config)["defense"])["mapping"] == "shift"

    # A run of a sweep that was done then is done now; with another mapping it is another run.
    task, changed = plan.expand(make({"defense.mapping": ("derangement", "shift")}, seeds=(0,)), tmp_path).runs
    before = {**task.settings, "defense": {k: v for k, v in task.settings["defense"].items() if k not in refine.LATER}}
    assert state._same(task, before)
    assert not state._same(changed, before)
