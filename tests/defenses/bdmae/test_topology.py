"""Refinement: draws and steps that were worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from refine_jax.defenses.bdmae import topology

# Patches 0 1 2 above 3 4 5.
TOUCHING = jnp.asarray(topology.neighbors((2, 3)))


def test_neighbors_have_a_side_in_common():
    expected = {0: {1, 3}, 1: {0, 2, 4}, 2: {1, 5}, 3: {0, 4}, 4: {1, 3, 5}, 5: {2, 4}}
    assert {i: {*np.flatnonzero(row).tolist()} for i, row in enumerate(np.asarray(TOUCHING))} == expected


def test_the_highest_are_as_many_as_are_asked_for():
    scores = np.array([[0.1, 0.5, 0.5, 0.3]] * 2, np.float32)
    found = jax.jit(topology.highest)(scores, np.array([1, 3]))
    np.testing.assert_array_equal(found, [[False, True, False, False], [False, True, True, True]])


@jax.jit
def likeliest(scores, among, count, weight):
    return topology.sample(scores, among, count, lambda number: jnp.ones((1, 6)), TOUCHING, weight)


def sample(scores, among, count, weight=0.5):
    given = (jnp.array([scores]), jnp.array([among], bool), jnp.array([count]))
    drawn = likeliest(*given, weight)
    return np.flatnonzero(np.asarray(drawn)[0]).tolist()


def test_neighbors_of_what_is_drawn_come_before_what_is_more_suspicious():
    scores, everywhere = [0.9, 0.1, 0.8, 0.2, 0.0, 0.5], [1] * 6
    assert sample(scores, everywhere, 1) == [0]
    assert sample(scores, everywhere, 2, weight=0.0) == [0, 2]
    # 0.8 of patch 2 is more than 0.2 + 0.5 of patch 3, and then 0.5 + 0.5 of patch 5 the most.
    assert sample(scores, everywhere, 3) == [0, 2, 5]
    # With more weight on neighbors 3 (0.2 + 1) is next to 0.
    assert sample(scores, everywhere, 2, weight=1.0) == [0, 3]
    # None but 0, 3 and 4 may be drawn.
    assert sample(scores, [1, 0, 0, 1, 1, 0], 3) == [0, 3, 4]
    # One is drawn in any case, and it may be none of those.
    assert sample(scores, [0, 0, 0, 0, 0, 1], 0) == [0]


def test_scores_fall_where_the_label_stays_and_rise_where_it_changes():
    scores = jnp.array([[0.9, 0.1, 0.8, 0.2, 0.3, 0.7]] * 2)
    settings = {"refinements": 1, "refinement_step": 0.05, "neighbor_weight": 0.0}
    found = topology.refine(
        scores,
        jnp.array([4, 4]),  # of 0, 2, 4 and 5, the two likeliest are hidden: 0 and 2
        lambda hidden: hidden,
        lambda hidden: hidden[:, 0] & (jnp.arange(2) == 0),  # the first image's label changes
        jnp.array([False, False]),
        lambda refinement, number: jnp.ones((2, 6)),
        TOUCHING,
        **settings,
    )
    change = [[0.05, 0, 0.05, 0, -0.05, -0.05], [-0.05, 0, -0.05, 0, 0.05, 0.05]]
    np.testing.assert_allclose(found - scores, change, atol=1e-6)
