"""The Wasserstein-1 distance between what a classifier puts out on clean images and on triggered ones."""

import chex
import jax
import numpy as np

from refine_jax.keys import named_key

# So many images of each kind: the exact distance takes a second, of twice as many eight times as long.
SAMPLE = 1000


def sample(total: int, count: int) -> np.ndarray:
    """Returns which images the distance is of, by a fixed rule, whatever the seed of a run; in order.

    Args:
        total: How many images there are.
        count: How many are wanted, at most as many.
    """
    drawn = jax.random.permutation(named_key(0, "evaluation/w1"), total)[:count]
    return np.sort(np.asarray(drawn))


def wasserstein_1(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the Wasserstein-1 distance between two sets of points, each of which weighs the same.

    It is the least mean distance at which every point of the one set can be paired with a point of the other: with
    equally many points of equal weight, no transport that splits points is cheaper than the best pairing.

    Args:
        first: [N, D]
        second: [N, D]

    Returns:
        In units of the points; distances between points are Euclidean.

    References:
        Peyre and Cuturi, Computational Optimal Transport, 2019, section 2.3 (Birkhoff; the assignment is optimal).
    """
    from scipy.optimize import linear_sum_assignment  # these take a while to import
    from scipy.spatial.distance import cdist

    chex.assert_rank([first, second], 2)
    chex.assert_equal_shape([first, second])
    costs = cdist(np.asarray(first, np.float64), np.asarray(second, np.float64))  # [N, N]
    return float(costs[linear_sum_assignment(costs)].mean())
