"""Estimated gradients against true ones."""

import jax
import jax.numpy as jnp
import numpy as np

from refine_jax.defenses.blackbox.estimate import draw_directions, estimate_gradient, perturb

D, SIDE = 4000, 4


def cosine(a, b):
    return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


def images():
    return np.random.default_rng(0).uniform(0.4, 0.6, (2, SIDE, SIDE, 3)).astype(np.float32)


def estimated(value, shown, directions=D, smoothing=0.05, key=0, **given):
    key = jax.random.key(key)
    return np.asarray(estimate_gradient(value, shown, key, directions=directions, smoothing=smoothing, **given))


def test_of_a_quadratic_it_is_the_gradient_in_the_mean():
    rng = np.random.default_rng(1)
    weights, curvature = rng.normal(size=48), rng.normal(size=(48, 48))
    asked = []

    def value(shown):
        asked.append(len(shown))
        flat = shown.reshape(len(shown), -1).astype(np.float64)
        return flat @ weights + 0.5 * np.einsum("ni,ij,nj->n", flat, curvature, flat)

    flat = images().reshape(2, -1)
    expected = weights + flat @ (curvature + curvature.T) / 2
    found = estimated(value, images())
    assert asked == [2 * D * 2]
    for i in range(2):
        assert cosine(found[i].ravel(), expected[i]) > 0.98
        np.testing.assert_allclose(np.linalg.norm(found[i]), np.linalg.norm(expected[i]), rtol=0.1)
    # Of few directions in d = 48 dimensions, about sqrt(D / (D + d)) of it is seen.
    few = estimated(value, images(), directions=8)
    assert 0.1 < np.mean([cosine(few[i].ravel(), expected[i]) for i in range(2)]) < 0.7
    np.testing.assert_array_equal(few, estimated(value, images(), directions=8))
    assert (few != estimated(value, images(), directions=8, key=1)).any()


def test_of_a_small_network_it_points_along_the_gradient():
    rng = np.random.default_rng(2)
    first, second = rng.normal(0, 0.5, (48, 16)), rng.normal(size=16)

    def hidden(shown):
        return np.tanh((shown.reshape(len(shown), -1) - 0.5) @ first)

    expected = ((1 - hidden(images()) ** 2) * second) @ first.T
    found = estimated(lambda shown: hidden(shown) @ second, images()).reshape(2, -1)
    assert min(cosine(found[i], expected[i]) for i in range(2)) > 0.95


def test_squares_of_pixels_move_together_and_see_the_mean_of_the_gradient():
    weights = np.random.default_rng(3).normal(size=(SIDE, SIDE, 3)).astype(np.float32)
    means = weights.reshape(2, 2, 2, 2, 3).mean(axis=(1, 3)).repeat(2, axis=0).repeat(2, axis=1)
    found = estimated(lambda shown: (shown * weights).sum(axis=(1, 2, 3)), images(), block=2)[0]
    np.testing.assert_allclose(found, means, atol=0.2)
    assert cosine(found, means) > 0.98


def test_what_is_shown_stays_an_image_and_is_moved_both_ways():
    drawn = draw_directions(jax.random.key(0), D, (2, SIDE, SIDE, 3))
    assert abs(np.corrcoef(drawn[:, 0].ravel(), drawn[:, 1].ravel())[0, 1]) < 0.02
    shown = perturb(images(), drawn, 0.01)
    np.testing.assert_allclose(shown[0] - images(), images() - shown[1], atol=1e-6)
    far = np.asarray(perturb(images(), drawn, 5.0))
    assert (far.min(), far.max()) == (0, 1)
    # Of a pixel at 0, half of the gradient is seen.
    found = estimated(lambda shown: shown.sum(axis=(1, 2, 3)), jnp.zeros((2, SIDE, SIDE, 3)))
    np.testing.assert_allclose(found.mean(), 0.5, atol=0.05)
