"""What the victim's training images go through."""

import jax
import jax.numpy as jnp
import numpy as np

from refine_jax import attacks

IMAGES = jnp.asarray(np.random.default_rng(0).random((200, 16, 16, 3)), jnp.float32)
POISONED = jnp.arange(200) % 2 == 0
KEY = jax.random.key(0)


def test_batt_turns_benign_images_only():
    augmented = attacks.build("batt", 16).augment(IMAGES, POISONED, KEY)
    same = np.asarray((augmented == IMAGES).all(axis=(1, 2, 3)))
    assert same[::2].all()
    # Angles under about 3 degrees move no pixel of so small an image.
    assert 0.5 < 1 - same[1::2].mean() < 1
    none = attacks.build("batt", 16, benign_angle=0).augment(IMAGES, POISONED, KEY)
    np.testing.assert_array_equal(none, IMAGES)


def test_physical_flips_half_of_all_images():
    attack = attacks.build("physical", 16, brightness=0, degrees=0, shift=0, scale=(1, 1))
    augmented = np.asarray(attack.augment(IMAGES, POISONED, KEY))
    same = (augmented == IMAGES).all(axis=(1, 2, 3))
    flipped = (augmented == IMAGES[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (same ^ flipped).all()
    for part in (slice(0, None, 2), slice(1, None, 2)):
        assert 30 <= flipped[part].sum() <= 70


def test_physical_makes_images_smaller_within_a_black_frame():
    attack = attacks.build("physical", 16)
    augmented = np.asarray(attack.augment(jnp.ones_like(IMAGES), POISONED, KEY))
    covered = (augmented > 0).all(axis=-1).mean(axis=(1, 2))
    # Scaled to between 0.8 and 0.9 of the side; a part of it may leave the image.
    assert covered.min() > 0.5
    assert covered.max() < 0.95
    brightness = augmented.max(axis=(1, 2, 3))
    assert 0.9 <= brightness.min() < 0.92
    assert brightness.max() == 1
