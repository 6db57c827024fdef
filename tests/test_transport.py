"""The Wasserstein-1 distance, where it is known."""

import numpy as np
import pytest
from scipy.stats import wasserstein_distance, wasserstein_distance_nd

from refine_jax import asking, evaluation, transport
from refine_jax.asking import Answers


def points(count, dim=4, seed=0):
    return np.random.default_rng(seed).dirichlet(np.ones(dim), count)


def test_equal_sets_are_at_no_distance_in_whatever_order():
    first = points(30)
    assert transport.wasserstein_1(first, first) == 0
    assert transport.wasserstein_1(first, first[::-1]) == 0
    second = points(30, seed=1)
    expected = transport.wasserstein_1(first, second)
    shuffled = np.random.default_rng(2).permutation(30)
    assert transport.wasserstein_1(first[shuffled], second) == pytest.approx(expected)
    assert transport.wasserstein_1(second, first) == pytest.approx(expected)


def test_two_masses_are_as_far_as_their_points():
    zero, one = np.tile([1.0, 0, 0], (5, 1)), np.tile([0, 1.0, 0], (5, 1))
    assert transport.wasserstein_1(zero, one) == pytest.approx(2**0.5)
    mixed = np.concatenate([zero[:3], one[:2]])  # two fifths of the mass have to go
    assert transport.wasserstein_1(zero, mixed) == pytest.approx(0.4 * 2**0.5)


def test_what_is_shifted_is_as_far_as_it_was_shifted():
    first = points(40)
    assert transport.wasserstein_1(first, first + np.array([0.3, 0, 0, 0.4])) == pytest.approx(0.5)


def test_it_is_what_scipy_finds_by_other_ways():
    first, second = points(12), points(12, seed=1)
    found = transport.wasserstein_1(first, second)
    assert found == pytest.approx(wasserstein_distance_nd(first, second), rel=1e-6)  # a linear program
    line = transport.wasserstein_1(first[:, :1], second[:, :1])
    assert line == pytest.approx(wasserstein_distance(first[:, 0], second[:, 0]))  # by quantiles
    assert found < np.linalg.norm(first - second, axis=1).mean()  # the pairing that is given is not the best


def test_a_sample_is_the_same_every_time():
    rows = transport.sample(100, 20)
    np.testing.assert_array_equal(rows, transport.sample(100, 20))
    assert len({*rows.tolist()}) == 20
    assert (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(transport.sample(20, 20), np.arange(20))


def told(images):
    """Scores by the first two pixels of an image."""
    return np.asarray(images)[:, 0, 0, :2]


def images_of(rng, count):
    return rng.integers(0, 256, (count, 2, 2, 3), np.uint8)


def test_scores_are_of_the_sample_whatever_the_batches():
    rng = np.random.default_rng(0)
    clean, triggered = images_of(rng, 600), images_of(rng, 600)
    given = asking.answer(told, clean, triggered, 40)
    rows = transport.sample(600, 40)
    np.testing.assert_allclose(given.clean_scores, told(clean[rows] / 255), atol=1e-6)
    np.testing.assert_allclose(given.triggered_scores, told(triggered[rows] / 255), atol=1e-6)
    distance, count = evaluation.output_distance(given, logits=False)
    assert (distance, count) == (transport.wasserstein_1(given.clean_scores, given.triggered_scores), 40)

    fewer = asking.answer(told, clean, triggered[:7], 40)
    assert fewer.clean_scores.shape == fewer.triggered_scores.shape == (7, 2)
    for without in (asking.answer(told, clean, None, 40), asking.answer(told, clean, triggered)):
        assert without.clean_scores is None
        assert evaluation.output_distance(without, logits=True) == (None, None)
    np.testing.assert_array_equal(asking.answer(told, clean, None).clean, given.clean)


def test_of_logits_the_outputs_are_the_softmax():
    clean, triggered = np.array([[0.0, 0.0]]), np.array([[np.log(3.0), 0.0]])
    answers = Answers(np.array([0]), np.array([0]), 2, clean, triggered)
    assert evaluation.output_distance(answers, logits=True)[0] == pytest.approx(0.25 * 2**0.5)
