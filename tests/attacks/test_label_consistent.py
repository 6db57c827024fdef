"""Label-Consistent: what is perturbed, how far, with which labels, and what is left of an interrupted run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refine_jax import attacks
from refine_jax.attacks import kept, label_consistent
from refine_jax.errors import SettingError, WorkdirError

WEIGHTS = jnp.asarray(np.random.default_rng(7).normal(size=(16 * 16 * 3, 4)), jnp.float32)


def classifier(images):
    return (images.reshape(len(images), -1) - 0.5) @ WEIGHTS


@pytest.fixture
def training_set():
    images = np.random.default_rng(0).integers(0, 256, (80, 16, 16, 3), dtype=np.uint8)
    return images, np.arange(80) % 4


def build(**given):
    return attacks.build("label_consistent", 16, **{"target": 2, "rate": 0.5, "steps": 12, **given})


def test_only_the_target_class_is_perturbed_within_eps_and_labels_stay(training_set):
    images, labels = training_set
    attack = build()
    poisoned = attack.poison(images, labels, jax.random.key(0), classifier)
    np.testing.assert_array_equal(poisoned.labels, labels)
    assert len(poisoned.indices) == 10
    assert (labels[poisoned.indices] == 2).all()
    others = np.setdiff1d(np.arange(80), poisoned.indices)
    np.testing.assert_array_equal(poisoned.images[others], images[others])
    changed, before = poisoned.images[poisoned.indices].astype(int), images[poisoned.indices].astype(int)
    assert (changed[:, -2:, -2:] == 255).all()
    difference = (changed - before)[:, :-2]
    # Truncation takes at most a level more.
    assert -9 <= difference.min() <= -7
    assert 7 <= difference.max() <= 8


def test_the_true_class_becomes_less_likely(training_set):
    images, labels = training_set
    moved = label_consistent.perturb(classifier, images, labels, eps=8 / 255, alpha=1.5 / 255, steps=12)

    def likelihood(images):
        logits = classifier(jnp.asarray(images, jnp.float32) / 255)
        return np.asarray(jax.nn.log_softmax(logits))[np.arange(80), labels]

    assert (likelihood(moved) <= likelihood(images)).all()
    assert (likelihood(moved) < likelihood(images) - 1).mean() > 0.9


def test_of_a_linear_classifier_with_two_classes_it_is_the_sign_of_the_weights():
    images = np.full((3, 16, 16, 3), 100, np.uint8)
    weights = np.random.default_rng(1).normal(size=(16, 16, 3)).astype(np.float32)
    score = lambda images: (images * weights).sum(axis=(1, 2, 3)) * 0.01  # noqa: E731
    two_classes = lambda images: jnp.stack([score(images), jnp.zeros(len(images))], axis=-1)  # noqa: E731
    moved = label_consistent.perturb(two_classes, images, np.array([0, 1, 0]), eps=8.5 / 255, alpha=2.5 / 255, steps=3)
    # 3 steps of 2.5 up or down from 100, truncated.
    for image, direction in zip(moved, (-1, 1, -1), strict=True):
        np.testing.assert_array_equal(image, np.where(direction * weights > 0, 107, 92))


def test_the_trigger_at_test_time_is_the_patch_alone(training_set):
    images, _ = training_set
    np.testing.assert_array_equal(build().trigger(images), attacks.build("badnets", 16).trigger(images))


def test_without_a_classifier_or_the_class_there_is_no_attack(training_set):
    images, labels = training_set
    with pytest.raises(SettingError, match=r"attack\.label_consistent\.classifier = None"):
        build().poison(images, labels, jax.random.key(0))
    with pytest.raises(SettingError, match=r"attack\.rate = 0\.01: allowed: at least 0\.05, with 20 images"):
        build(rate=0.01).poison(images, labels, jax.random.key(0), classifier)
    with pytest.raises(SettingError, match=r"attack\.rate = 0\.5: allowed: none, with 0 images"):
        build(target=1).poison(images, np.where(labels == 1, 0, labels), jax.random.key(0), classifier)


def test_images_that_were_kept_are_put_back_where_they_were_made_and_nowhere_else(training_set, tmp_path):
    images, labels = training_set
    key = jax.random.key(0)
    made = build().poison(images, labels, key, classifier)
    kept.save(tmp_path, build(), made)
    again = kept.load(tmp_path).poison(images, labels, key)
    np.testing.assert_array_equal(again.images, made.images)
    np.testing.assert_array_equal(again.indices, made.indices)
    for other_labels, other_key in ((np.roll(labels, 1), key), (labels, jax.random.key(1))):
        with pytest.raises(WorkdirError, match="the indices that were kept of attack label_consistent"):
            kept.load(tmp_path).poison(images, other_labels, other_key)


def test_an_interrupted_run_is_gone_on_with(training_set, tmp_path, monkeypatch):
    images, labels = training_set
    monkeypatch.setattr(label_consistent, "_BATCH_SIZE", 4)
    attack, cache, key = build(), tmp_path / "adversarial", jax.random.key(0)
    whole = attack.poison(images, labels, key, classifier).images
    calls = []

    def stop(done, total):
        calls.append((done, total))
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attack.poison(images, labels, key, classifier, progress=stop, cache=cache)
    assert calls == [(4, 10), (8, 10)]
    assert len(list(cache.iterdir())) == 2

    steps = []
    ascend = label_consistent.ascend
    monkeypatch.setattr(label_consistent, "ascend", lambda *given: steps.append(1) or ascend(*given))
    resumed = attack.poison(images, labels, key, classifier, cache=cache).images
    np.testing.assert_array_equal(resumed, whole)
    assert len(steps) == 12  # of the last batch alone
    # Other settings, and another classifier, are other images.
    build(steps=2).poison(images, labels, key, classifier, cache=cache)
    assert len(steps) == 12 + 3 * 2
    attack.poison(images, labels, key, lambda images: 2 * classifier(images), cache=cache)
    assert len(steps) == 12 + 3 * 2 + 3 * 12
