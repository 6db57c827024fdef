"""Scores are refined: patches that hang together are hidden, and the label says whether the trigger was among them.

Source: Sun et al., section 4.2; the released program, `gen_local_sample` and `forward_mae`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from refine_jax.defenses.bdmae.scores import Classify

# (number) -> uniform in [0, 1) [N, T], of each number others.
Draw = Callable[[jax.Array | int], jax.Array]


def neighbors(grid: tuple[int, int]) -> np.ndarray:
    """Returns which patches have a side in common.  bool [T, T]"""
    row, column = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    return np.abs(row[:, None] - row) + np.abs(column[:, None] - column) == 1


def highest(scores: jax.Array, count: jax.Array) -> jax.Array:
    """Returns which are the `count` [N] highest of the scores [N, T]; of equal ones the first.  bool [N, T]"""
    order = jnp.argsort(-scores, axis=-1)
    return jnp.argsort(order, axis=-1) < count[:, None]


def sample(
    scores: jax.Array, among: jax.Array, count: jax.Array, draw: Draw, touching: jax.Array, neighbor_weight: float
) -> jax.Array:
    """Draws patches by their scores, one after another, those beside one that is drawn already the likelier.

    Args:
        scores: [N, T]
        among: Which may be drawn; the first is drawn from all. bool [N, T]
        count: How many; one is drawn in any case. [N]
        draw: The chance of each patch at each turn.
        touching: From `neighbors`.
        neighbor_weight: What the score of a neighbor is raised by.

    Returns:
        bool [N, T]
    """
    places = jnp.arange(scores.shape[1])
    first = jnp.argmax(draw(0) * scores, axis=-1)

    def add(number, carry):
        chosen, near = carry
        chances = jnp.where(among & ~chosen, draw(number) * (scores + neighbor_weight * near), -jnp.inf)
        best = jnp.argmax(chances, axis=-1)
        wanted = (number < count)[:, None]
        return chosen | (wanted & (best[:, None] == places)), near | (wanted & touching[best])

    chosen, _ = jax.lax.fori_loop(1, count.max(), add, (first[:, None] == places, touching[first]))
    return chosen


def refine(
    scores: jax.Array,
    count: jax.Array,
    restore: Callable[[jax.Array], jax.Array],
    classify: Classify,
    labels: jax.Array,
    draw: Callable[[jax.Array, jax.Array | int], jax.Array],
    touching: jax.Array,
    *,
    refinements: int,
    refinement_step: float,
    neighbor_weight: float,
) -> jax.Array:
    """Refines scores by restorations that hide half of the most suspicious patches at a time.

    Where the label stays what it was, the scores of the hidden ones fall and those of the other half rise; where it
    changes, the other way around.

    Args:
        scores: [N, T]
        count: How many patches of each image count as the most suspicious. [N]
        restore: (hidden bool [N, T]) -> images.
        classify: Says what a restoration shows.
        labels: What it says of the images as they are. [N]
        draw: (refinement, number) -> as `sample` takes it.
        touching: From `neighbors`.
        refinements: How many.
        refinement_step: By which scores move.
        neighbor_weight: Of `sample`.

    Returns:
        [N, T]
    """

    def step(scores, number):
        top = highest(scores, count)
        chosen = sample(scores, top, count // 2, lambda i: draw(number, i), touching, neighbor_weight)
        stays = classify(restore(chosen)) == labels
        move = jnp.where(stays, refinement_step, -refinement_step)[:, None]
        # The first patch may be none of the most suspicious; it then moves twice as far.
        rest = top.astype(scores.dtype) - chosen
        return scores + move * (rest - chosen), None

    return jax.lax.scan(step, scores, jnp.arange(refinements))[0]
