"""What holds for every attack there is."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refine_jax import attacks
from refine_jax.attacks import registry

SIZES = [16, 28, 64, 224, (32, 48)]


@pytest.fixture(params=sorted(registry.ATTACKS))
def name(request):
    return request.param


def random_images(size, count=6, seed=0):
    height, width = (size, size) if isinstance(size, int) else size
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def linear_classifier(images):
    weights = np.random.default_rng(1).normal(size=(3, 10)).astype(np.float32)
    return images.mean(axis=(1, 2)) @ weights


def poison(attack, images, labels, seed=0):
    return attack.poison(images, labels, jax.random.key(seed), linear_classifier if attack.needs_classifier else None)


@pytest.mark.parametrize("size", SIZES)
def test_trigger_changes_every_image_and_says_the_same_again(name, size):
    attack = attacks.build(name, size)
    images = random_images(size)
    before = images.copy()
    images.setflags(write=False)
    triggered = attack.trigger(images)
    assert triggered.dtype == np.uint8
    assert triggered.shape == images.shape
    assert (triggered != images).any(axis=(1, 2, 3)).all()
    np.testing.assert_array_equal(images, before)
    np.testing.assert_array_equal(attack.trigger(images), triggered)


def test_trigger_does_not_depend_on_how_many_images_there_are(name):
    attack = attacks.build(name, 32)
    images = random_images(32, count=37)
    whole = attack.trigger(images)
    parts = [attack.trigger(images[:1]), attack.trigger(images[1:20]), attack.trigger(images[20:])]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert attack.trigger(images[:0]).shape == (0, 32, 32, 3)


def test_gray_images_are_images(name):
    attack = attacks.build(name, 28)
    gray = np.repeat(random_images(28)[..., :1], 3, axis=-1)
    assert (attack.trigger(gray) != gray).any(axis=(1, 2, 3)).all()


def test_the_seed_is_all_that_is_random(name):
    attack, same = (attacks.build(name, 32, seed=3) for _ in range(2))
    assert attack.arrays.keys() == same.arrays.keys()
    for array in attack.arrays:
        np.testing.assert_array_equal(attack.arrays[array], same.arrays[array])


def test_an_attack_is_rebuilt_from_what_was_kept(name, monkeypatch):
    attack = attacks.build(name, 32, target=2, rate=0.3, seed=4)
    description = json.loads(json.dumps(attacks.describe(attack)))
    arrays = {array: value.copy() for array, value in attack.arrays.items()}
    monkeypatch.setattr(registry, "named_key", None)  # nothing can be drawn
    again = attacks.rebuild(description, arrays)
    assert (again.name, again.target, again.rate, again.image_size, again.seed) == (name, 2, 0.3, (32, 32), 4)
    assert attacks.describe(again) == description
    images, labels = random_images(32, count=30), np.arange(30) % 3
    np.testing.assert_array_equal(again.trigger(images), attack.trigger(images))
    np.testing.assert_array_equal(poison(again, images, labels).images, poison(attack, images, labels).images)


def test_arrays_cannot_be_changed_by_accident(name):
    for array in attacks.build(name, 32).arrays.values():
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


def test_poisoning_changes_what_it_says_and_nothing_else(name):
    attack = attacks.build(name, 16, target=1, rate=0.2)
    images, labels = random_images(16, count=120), (np.arange(120) % 4).astype(np.int32)
    before = images.copy(), labels.copy()
    images.setflags(write=False)
    labels.setflags(write=False)
    poisoned = poison(attack, images, labels)
    np.testing.assert_array_equal(images, before[0])
    np.testing.assert_array_equal(labels, before[1])
    assert poisoned.images.dtype == np.uint8
    assert poisoned.labels.dtype == np.int32
    for indices in (poisoned.indices, poisoned.cover_indices):
        assert indices.dtype == np.int32
        assert (np.diff(indices) > 0).all()
    assert not set(poisoned.indices) & set(poisoned.cover_indices)
    touched = np.union1d(poisoned.indices, poisoned.cover_indices)
    changed = np.flatnonzero((poisoned.images != images).any(axis=(1, 2, 3)))
    np.testing.assert_array_equal(changed, touched)
    assert (poisoned.labels[poisoned.indices] == 1).all()
    others = np.setdiff1d(np.arange(120), poisoned.indices)
    np.testing.assert_array_equal(poisoned.labels[others], labels[others])


def test_poisoning_follows_its_key(name):
    attack = attacks.build(name, 16, rate=0.25)
    images, labels = random_images(16, count=160), np.arange(160) % 2
    first, again, other = (poison(attack, images, labels, seed) for seed in (0, 0, 1))
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert not np.array_equal(first.indices, other.indices)


def test_augmentation_gives_images_under_jit(name):
    attack = attacks.build(name, 16)
    images = jnp.asarray(random_images(16), jnp.float32) / 255
    poisoned = jnp.arange(6) < 2
    augment = jax.jit(attack.augment)
    augmented = augment(images, poisoned, jax.random.key(0))
    assert augmented.shape == images.shape
    assert augmented.dtype == images.dtype
    assert 0 <= float(augmented.min()) <= float(augmented.max()) <= 1
    np.testing.assert_array_equal(augment(images, poisoned, jax.random.key(0)), augmented)
    if name not in ("physical", "batt"):
        np.testing.assert_array_equal(augmented, images)
