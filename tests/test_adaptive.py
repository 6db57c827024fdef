import functools
import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from refine_jax import adaptive, fields, pipeline, settings, victim
from refine_jax.attacks.poisoning import Poisoned
from refine_jax.datasets.feed import Feed
from refine_jax.datasets.images import Dataset, Split
from refine_jax.defenses import refine
from refine_jax.errors import SettingError, WorkdirError
from refine_jax.files import hash_arrays, read_record
from refine_jax.keys import named_key
from refine_jax.networks import registry
from refine_jax.training import loop, parallel
from refine_jax.training.interruption import Interrupted
from refine_jax.training.parallel import ONE_DEVICE, Step
from refine_jax.training.state import TrainState
from tests import test_victim
from tests.small_run import config, tiny_fixture  # noqa: F401 - a fixture
from tests.tint import Tint, compile_at_once

K, COUNT, SIDE = 4, 10, 4
ADAPTIVE = {
    **{"knowledge": "guessed", "updates": "joint", "weight": 0.5, "width": 2, "depth": 1},
    **{"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.0, "learning_rate": 0.3},
}
INDICES, COVERS = np.array([1, 7]), np.array([4])
AUGMENT = test_victim.ATTACK


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    monkeypatch.setitem(registry.NETWORKS, "linear", functools.partial(test_victim.Linear))
    monkeypatch.setattr(adaptive, "UNet", Tint)
    monkeypatch.setattr(parallel, "compile_training", compile_at_once)


@pytest.fixture(scope="module")
def dataset():
    return make_dataset()


def make_dataset():
    """Images that are their own mirror images, so that no flip changes them."""
    rng = np.random.default_rng(0)
    half = rng.integers(0, 256, (COUNT, SIDE, SIDE // 2, 3), np.uint8)
    split = Split(np.concatenate([half, half[:, :, ::-1]], axis=2), rng.integers(0, K, COUNT).astype(np.int32))
    return Dataset("made", split, split, tuple("abcd"), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))


def poison(dataset):
    labels = dataset.train.labels.copy()
    labels[INDICES] = 0
    return Poisoned(dataset.train.images, labels, INDICES, COVERS)


def train(dataset, journal=None, *, batch_size=COUNT, epochs=1, **changed):
    own = {**test_victim.SETTINGS, "name": "linear", "batch_size": batch_size, "epochs": epochs}
    own["adaptive"] = {**ADAPTIVE, **changed}
    return victim.train(dataset, AUGMENT, poison(dataset), own, 3, journal, ONE_DEVICE)


@functools.cache
def one_step(updates):
    """([state at the start], state after a step on all images); made once for all tests."""
    kept, fit = [], loop.fit
    with pytest.MonkeyPatch.context() as patched:
        # A copy, because the step overwrites the state that it is given.
        patched.setattr(loop, "fit", lambda *given: kept.append(jax.tree.map(np.array, given[2])) or fit(*given))
        return kept, train(make_dataset(), updates=updates).state


@pytest.mark.parametrize("updates", adaptive.UPDATES)
def test_the_victims_loss_is_cross_entropy_plus_a_share_of_that_behind_unet_and_mapping(dataset, updates):
    (begun,), outcome = one_step(updates)
    head = begun.params["head"]
    poisoned = poison(dataset)
    images = poisoned.images / np.float32(255)
    images[INDICES] += 0.25
    # In turns, the victim meets the U-Net that has moved already.
    unet = (begun if updates == "joint" else outcome).unet.variables
    behind = np.clip(Tint(width=2).apply(unet, images), 0, 1)
    permutation = np.asarray(adaptive.assumed_mapping("guessed", 3, K))
    wanted = np.eye(K)[[np.flatnonzero(permutation == label)[0] for label in poisoned.labels]]

    kernel, bias = 0.01 * head["kernel"], 0.01 * head["bias"]  # the weight decay
    for shown, targets, weight in ((images, np.eye(K)[poisoned.labels], 1.0), (behind, wanted, 0.5)):
        inputs = ((shown - dataset.mean) / dataset.std).mean(axis=(1, 2))
        logits = inputs @ head["kernel"] + head["bias"]
        errors = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True) - targets
        kernel = kernel + weight * inputs.T @ errors / COUNT
        bias = bias + weight * errors.mean(axis=0)
    assert abs(behind - images).max() > 0.1
    moved = outcome.params["head"]
    np.testing.assert_allclose(moved["kernel"], head["kernel"] - 0.2 * kernel, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(moved["bias"], head["bias"] - 0.2 * bias, rtol=1e-4, atol=1e-5)


def test_the_unet_learns_as_the_defenders_and_of_clean_images_alone(dataset):
    (begun,), outcome = one_step("joint")
    classifier = victim.to_classifier(begun.variables, dataset, {**test_victim.SETTINGS, "name": "linear"})
    order = Feed(COUNT, COUNT, named_key(3, "victim/order"), keep_last=True).indices(0)
    clean = [i for i in order if i not in {*INDICES, *COVERS}]
    in_turn = iter(clean)
    images = dataset.train.images[[i if i in clean else next(in_turn) for i in order]] / np.float32(255)
    images = refine.augment(jnp.asarray(images), named_key(3, "victim/augmentation", "adaptive", 0))
    tx = optax.sgd(0.3, 0.9)
    alone = TrainState(0, begun.unet.params, begun.unet.batch_stats, tx.init(begun.unet.params))
    mapping = adaptive.assumed_mapping("guessed", 3, K)
    update = compile_at_once(
        lambda images: refine.update(Tint(width=2), tx, alone, classifier, images, mapping, None)[0]
    )
    chex.assert_trees_all_close(outcome.unet.variables, update(images).variables, rtol=1e-4, atol=1e-5)


def test_a_batch_without_a_clean_image_stays_as_it_is():
    images = jnp.arange(6.0).reshape(3, 2, 1, 1)
    chex.assert_trees_all_equal(adaptive.only_clean(images, jnp.ones(3, bool)), images)


def test_more_changed_images_than_clean_ones_take_their_places_in_turn():
    images = jnp.arange(6.0).reshape(6, 1, 1, 1)
    changed = jnp.asarray([True, False, True, True, True, False])
    np.testing.assert_array_equal(adaptive.only_clean(images, changed).ravel(), [1, 1, 5, 1, 5, 5])


def test_known_is_the_defenders_own_mapping(dataset, monkeypatch):
    caught = []

    def catch(stage, step, state, data, *rest):
        caught.append(data)
        raise StopIteration

    monkeypatch.setattr(loop, "fit", catch)
    monkeypatch.setattr(refine, "UNet", Tint)
    wide = Dataset("made", dataset.train, dataset.test, tuple("abcdefghij"), dataset.mean, dataset.std)
    for knowledge in adaptive.KNOWLEDGE:
        with pytest.raises(StopIteration):
            train(wide, knowledge=knowledge)
    unknown, guessed, known = (data["mapping"] for data in caught)
    images = np.zeros((1, SIDE, SIDE, 3), np.float32)
    variables = registry.build("linear", 10).init(jax.random.key(0), images)
    classifier = victim.to_classifier(variables, wide, {**test_victim.SETTINGS, "name": "linear"})
    own = refine.complete({"batch_size": COUNT, "width": 2, "depth": 1, "pseudo_labels": "original"})
    with pytest.raises(StopIteration):
        refine.fit(classifier, wide.train, own, 3, 10)
    np.testing.assert_array_equal(known, caught[-1]["permutation"])
    np.testing.assert_array_equal(unknown, np.arange(10))
    assert (guessed != np.arange(10)).all()
    assert not np.array_equal(guessed, known)


def test_stopped_and_gone_on_with_it_comes_to_the_same_bit_for_bit(dataset, tmp_path, monkeypatch):
    class Interrupting(Step):
        stop_at: int | None = None

        def __call__(self, state, data, batch):
            if int(state.step) == self.stop_at:
                signal.raise_signal(signal.SIGTERM)
            return super().__call__(state, data, batch)

    step = functools.cache(lambda execution: Interrupting(made.pop(), execution))  # is compiled once for all three
    made = []
    monkeypatch.setattr(victim, "Step", lambda make, execution: made.append(make) or step(execution))
    given = {"batch_size": 5, "epochs": 3}
    whole = train(dataset, **given).state
    journal = loop.Journal(tmp_path / "checkpoints", tmp_path / "metrics.jsonl", {}, 1, 60.0)
    step(ONE_DEVICE).stop_at = 2
    with pytest.raises(Interrupted):
        train(dataset, journal, **given)
    step(ONE_DEVICE).stop_at = None
    resumed = train(dataset, journal, **given).state
    chex.assert_trees_all_equal(resumed, whole)
    assert isinstance(resumed, adaptive.AdaptiveState)

    # What is left is a classifier as any other.
    variables = victim.load(tmp_path, hash_arrays(whole.variables))
    chex.assert_trees_all_equal(variables, jax.device_get(whole.variables))


def stop(*given):
    raise StopIteration


def adaptive_config(**changed):
    small = config()
    for name, value in {**ADAPTIVE, **changed}.items():
        small.victim.adaptive[name] = value
    return small


def test_a_victim_of_other_knowledge_is_another_victim(tmp_path, monkeypatch):
    monkeypatch.setattr(victim, "train", stop)
    run = functools.partial(pipeline.run, workdir=str(tmp_path), stages=("victim",))
    with pytest.raises(StopIteration):
        run(adaptive_config(knowledge="known"))
    record = read_record(tmp_path / "victim" / "stage.json", ("settings", "outcome"))
    assert record["settings"]["victim"]["adaptive"] == {**ADAPTIVE, "knowledge": "known"}
    with pytest.raises(WorkdirError, match=r"victim\.adaptive\.knowledge: 'known' -> 'guessed'"):
        run(adaptive_config())
    with pytest.raises(WorkdirError, match=r"victim\.adaptive\.weight: 0\.5 -> not there"):
        run(config())


def test_who_knows_nothing_leaves_nothing_in_the_settings():
    assert "adaptive" not in settings.complete(config())["victim"]
    assert {f"victim.adaptive.{name}" for name in ADAPTIVE} <= {*fields.names()}


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("knowledge", "knwon", r"unknown, guessed, known \(did you mean 'known'\?\)"),
        ("updates", "both", "joint, turns"),
        ("weight", 0.0, "a number above 0"),
        ("width", 0, "1 or more"),
        ("optimizer", "sgdd", "sgd, adam"),
        ("learning_rate", -1.0, "a number above 0"),
    ],
)
def test_impossible_values_are_refused(field, value, allowed):
    with pytest.raises(SettingError, match=rf"victim\.adaptive\.{field} = {value!r}: allowed: {allowed}"):
        settings.complete(adaptive_config(**{field: value}))


@pytest.mark.parametrize("mapping", ["shift", "identity"])
def test_who_knows_the_mapping_knows_a_derangement(mapping):
    small = adaptive_config(knowledge="known")
    small.defense.mapping = mapping
    with pytest.raises(SettingError, match=rf"knowledge = 'known': allowed: unknown or guessed with .*={mapping}: "):
        settings.complete(small)
    small.victim.workdir = "another run"  # whose victim is what it is, and may be met by any mapping
    assert settings.complete(small)["defense"]["mapping"] == mapping


def test_an_imported_victim_is_not_trained_by_anybody():
    small = adaptive_config()
    small.victim.checkpoint = "given.pth"
    with pytest.raises(SettingError, match=r"victim\.adaptive\.knowledge = 'guessed': allowed: nothing"):
        settings.complete(small)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"depth": 3}, r"victim\.adaptive\.depth = 3: allowed: 1 to 2 for images of 4 x 4"),
        ({"batch_size": 1}, r"victim\.batch_size = 1: allowed: a size that leaves no batch of one of the 10 images"),
        ({"batch_size": 3}, r"victim\.batch_size = 3: .* of the 10 images, with victim\.adaptive"),
    ],
)
def test_what_these_images_do_not_allow_is_refused(dataset, changed, message):
    own = {**test_victim.SETTINGS, "name": "linear", "batch_size": changed.get("batch_size", 4)}
    own["adaptive"] = {**ADAPTIVE, "depth": changed.get("depth", 1)}
    with pytest.raises(SettingError, match=message):
        victim.check(own, dataset)
