"""Keys of images."""

import jax
import numpy as np

from refine_jax.defenses.chance import image_keys, keep, read_kept
from refine_jax.training.journal import Journal

IMAGES = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 3), dtype=np.uint8)


def drawn(images, seed=0):
    return np.asarray(jax.random.key_data(image_keys(jax.random.key(seed), images.astype(np.float32) / 255)))


def test_an_image_has_the_same_key_in_any_batch_and_any_place():
    everything = drawn(IMAGES)
    np.testing.assert_array_equal(drawn(IMAGES[5:9]), everything[5:9])
    np.testing.assert_array_equal(drawn(IMAGES[::-1]), everything[::-1])


def test_other_images_and_other_seeds_have_other_keys():
    changed = IMAGES.copy()
    changed[:, 3, 4, 1] ^= 1  # the least that can differ
    swapped = IMAGES[:, :, ::-1]
    keys = np.concatenate([drawn(IMAGES), drawn(changed), drawn(swapped), drawn(IMAGES, seed=1)])
    assert len(np.unique(keys, axis=0)) == 4 * len(IMAGES)


def test_a_kept_key_is_read_again_and_stays(tmp_path):
    journal = Journal(tmp_path / "checkpoints", tmp_path / "metrics.jsonl", {}, 1, 1.0)
    kept = keep(jax.random.key(7), journal)
    np.testing.assert_array_equal(kept, jax.random.key_data(jax.random.key(7)))
    np.testing.assert_array_equal(read_kept(journal.checkpoints), kept)
    # A run that was cut short after it goes on with it.
    np.testing.assert_array_equal(keep(jax.random.key(8), journal), kept)
    assert [path.name for path in journal.checkpoints.iterdir()] == ["0"]
