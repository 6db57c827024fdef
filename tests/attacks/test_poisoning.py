"""Which images are poisoned, of how many, and which only cover that up."""

import jax
import numpy as np
import pytest

from refine_jax import attacks
from refine_jax.attacks import poisoning
from refine_jax.errors import SettingError


@pytest.fixture
def training_set():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (1000, 16, 16, 3), dtype=np.uint8)
    return images, np.arange(1000) % 10


@pytest.mark.parametrize(
    ("count", "rate", "expected"), [(50000, 0.1, 5000), (100, 0.29, 29), (64, 0.1, 6), (10, 1.0, 10), (9, 0.1, 0)]
)
def test_a_share_is_rounded_down_but_for_what_floats_do(count, rate, expected):
    assert poisoning.int_share(count, rate) == expected


def test_poisoned_images_come_from_all_classes_alike(training_set):
    images, labels = training_set
    attack = attacks.build("badnets", 16, target=3, rate=0.5)
    poisoned = attack.poison(images, labels, jax.random.key(0))
    counts = np.bincount(labels[poisoned.indices], minlength=10)
    assert counts.sum() == 500
    # 50 expected of each, with a deviation of 3.5; the target's own class among them.
    assert (np.abs(counts - 50) < 18).all()
    halves = np.bincount(poisoned.indices // 500)
    assert (np.abs(halves - 250) < 60).all()


def test_a_rate_that_poisons_no_image_is_refused(training_set):
    images, labels = training_set
    attack = attacks.build("badnets", 16, rate=0.0005)
    with pytest.raises(SettingError, match=r"attack\.rate = 0\.0005: allowed: at least 0\.001, with 1000 images"):
        attack.poison(images, labels, jax.random.key(0))


def test_a_target_that_is_no_class_is_refused(training_set):
    images, labels = training_set
    attack = attacks.build("blended", 16, target=10)
    with pytest.raises(SettingError, match=r"attack\.target = 10: .*0 to 9"):
        attack.poison(images, labels, jax.random.key(0))


def test_images_of_another_size_are_refused(training_set):
    images, labels = training_set
    with pytest.raises(AssertionError):
        attacks.build("badnets", 32).poison(images, labels, jax.random.key(0))
    with pytest.raises(AssertionError):
        attacks.build("badnets", 16).trigger(images.astype(np.float32))
    with pytest.raises(AssertionError):
        attacks.build("badnets", 16).poison(images, labels[:-1], jax.random.key(0))


def test_images_mapped_from_a_file(training_set, tmp_path):
    images, labels = training_set
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    attack = attacks.build("wanet", 16)
    from_file, from_memory = (attack.poison(x, labels, jax.random.key(0)) for x in (mapped, images))
    np.testing.assert_array_equal(from_file.images, from_memory.images)
    assert not isinstance(from_file.images, np.memmap)
    np.testing.assert_array_equal(np.load(tmp_path / "images.npy"), images)


def test_noise_samples_of_wanet(training_set):
    images, labels = training_set
    attack = attacks.build("wanet", 16, target=0)
    poisoned = attack.poison(images, labels, jax.random.key(0))
    assert (len(poisoned.indices), len(poisoned.cover_indices)) == (100, 200)
    covers = poisoned.cover_indices
    np.testing.assert_array_equal(poisoned.labels[covers], labels[covers])
    assert (poisoned.images[covers] != attack.trigger(images[covers])).any(axis=(1, 2, 3)).all()
    without = attacks.build("wanet", 16, noise=False).poison(images, labels, jax.random.key(0))
    assert len(without.cover_indices) == 0
    np.testing.assert_array_equal(without.indices, poisoned.indices)


def test_noise_of_wanet_is_within_a_pixel_and_another_for_each_image():
    # Each pixel says where it is, so that a sample says where it was taken.
    x, y = np.meshgrid(np.arange(64) * 4, np.arange(64) * 4)
    image = np.stack([x, y, 0 * x], axis=-1).astype(np.uint8)
    attack = attacks.build("wanet", 64, s=0.0, rate=0.3)
    poisoned = attack.poison(np.repeat(image[np.newaxis], 10, axis=0), np.zeros(10, int), jax.random.key(0))
    covers = poisoned.images[poisoned.cover_indices].astype(float) / 4
    moved = (covers - image / 4)[:, 2:-2, 2:-2, :2]
    # A shift of 1 / 64 in units of half the width is 63 / 128 of a pixel.
    assert 0.45 < np.abs(moved).max() < 0.5 + 0.13
    assert abs(moved.mean()) < 0.01
    assert not np.array_equal(covers[0], covers[1])


def test_cover_images_are_what_is_left_where_they_are_too_many(training_set):
    images, labels = training_set
    poisoned = attacks.build("wanet", 16, rate=0.5).poison(images, labels, jax.random.key(0))
    assert (len(poisoned.indices), len(poisoned.cover_indices)) == (500, 500)


def test_adaptive_patch_uses_one_pattern_after_another(training_set):
    images, labels = training_set
    images = np.full_like(images, 50)
    attack = attacks.build("adaptive_patch", 16, rate=0.02, cover_rate=0.04, alphas=(1.0, 1.0, 1.0, 1.0))
    poisoned = attack.poison(images, labels, jax.random.key(0))
    patterns = attack.arrays["patterns"]
    for indices, count in ((poisoned.indices, 20), (poisoned.cover_indices, 40)):
        assert len(indices) == count
        for number, image in enumerate(poisoned.images[indices]):
            pattern = patterns[number % 4]
            np.testing.assert_array_equal(image, np.where(pattern.any(axis=-1, keepdims=True), pattern, 50))


def test_what_is_drawn_stays_what_it_was():
    """Whoever repeats a run on another machine or with a later version poisons the same images in the same way."""
    control = attacks.build("wanet", 32, seed=0).arrays["control_grid"]
    np.testing.assert_allclose(control[0, 0, 0], [-0.793025, 1.1464778, 1.3105397, -0.6942444], atol=1e-6)
    drawn = attacks.build("badnets", 16).poison(
        np.zeros((100, 16, 16, 3), np.uint8), np.zeros(100, int), jax.random.key(0)
    )
    assert drawn.indices.tolist() == [12, 17, 27, 33, 34, 48, 69, 75, 76, 89]
