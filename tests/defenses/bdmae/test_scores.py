"""Masks, similarity, and the scores of a case that was worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refine_jax.defenses.bdmae import scores
from tests.defenses.bdmae import small


def test_masks_are_parts_of_orders_one_after_another():
    # Orders 1 0 2 3 and 3 2 1 0; three at a time: 1 0 2, then 3 and 3 2.
    uniforms = np.array([[0.5, 0.9, 0.3, 0.1], [0.1, 0.2, 0.6, 0.7]], np.float32)
    expected = [[True, True, True, False], [False, False, True, True]]
    np.testing.assert_array_equal(jax.jit(scores.random_masks, static_argnums=1)(uniforms, 3), expected)


@pytest.mark.parametrize(("patches", "masks", "count"), [(196, 5, 147), (9, 2, 4)])
def test_masks_hide_each_patch_and_leave_no_more_visible_than_is_said(patches, masks, count):
    uniforms = np.random.default_rng(0).random((50, masks, patches), np.float32)
    uniforms[0] = np.arange(patches)  # the same order again and again, and back and forth
    uniforms[1, ::2], uniforms[1, 1::2] = -np.arange(patches), np.arange(patches)
    hidden = np.asarray(jax.jit(scores.random_masks, static_argnums=1)(uniforms, count))
    assert hidden.any(axis=1).all() == (masks * count >= patches)
    assert hidden.sum(axis=-1).max() == count
    most = scores.most_visible(patches, masks, count)
    assert (~hidden).sum(axis=-1).max() <= most < patches


def test_released_masks_leave_half_of_the_patches_visible_at_most():
    assert scores.most_visible(196, 5, 147) == 98


def test_similarity_is_that_of_windows_around_each_pixel():
    a, b = np.random.default_rng(0).uniform(size=(2, 1, 9, 7, 3))
    weights = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(weights, weights)[..., None] / weights.sum() ** 2
    wide_a, wide_b = (np.pad(x[0], ((5, 5), (5, 5), (0, 0)), mode="edge") for x in (a, b))
    expected = np.empty((9, 7))
    for i in range(9):
        for j in range(7):
            x, y = (wide[i : i + 11, j : j + 11] for wide in (wide_a, wide_b))
            mean_x, mean_y = ((window * x).sum(axis=(0, 1)) for x in (x, y))
            spread = [(window * p).sum(axis=(0, 1)) for p in ((x - mean_x) ** 2, (y - mean_y) ** 2)]
            shared = (window * (x - mean_x) * (y - mean_y)).sum(axis=(0, 1))
            brightness = (2 * mean_x * mean_y + 1e-4) / (mean_x**2 + mean_y**2 + 1e-4)
            expected[i, j] = (brightness * (2 * shared + 9e-4) / (sum(spread) + 9e-4)).mean()
    found = jax.jit(scores.ssim)(a.astype(np.float32), b.astype(np.float32))
    np.testing.assert_allclose(found[0], expected, atol=1e-5)


def test_a_case_by_hand():
    """Four patches of one pixel, gray of 0.5, restored as 0.25 each; the class is 1 as long as patch 3 is gray."""
    images = np.full((1, 2, 2, 3), 0.5, np.float32)
    restorer = small.restorer(small.Plain(1, 0.25), (2, 2))
    classify = lambda images: (images[:, 1, 1, 0] > 0.4).astype(jnp.int32)  # noqa: E731
    # Two outer repetitions of two restorations each; patch 3 is hidden in one of the first two, and in both others.
    hidden = np.array([[[1, 1, 0, 0], [0, 1, 1, 1]], [[1, 0, 0, 1], [0, 1, 1, 1]]], bool)[:, :, None]
    score = jax.jit(lambda *given: scores.score(restorer, classify, *given, 4))
    by_image, changes = score(images, np.array([1]), hidden)
    # What is restored is 0.25 all over after either outer repetition: no structure, and brightness alone differs.
    similarity = (2 * 0.5 * 0.25 + 1e-4) / (0.5**2 + 0.25**2 + 1e-4)
    np.testing.assert_allclose(by_image, np.full((1, 4), 1 - similarity), atol=1e-5)
    # Another class in the second, third and fourth restoration: who was hidden in these?
    np.testing.assert_array_equal(changes, [[1, 2, 2, 3]])
