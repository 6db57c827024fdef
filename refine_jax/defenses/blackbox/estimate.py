"""Gradients of a function that can only be evaluated: differences along random directions.

References:
    Nesterov and Spokoiny, "Random Gradient-Free Minimization of Convex Functions", Foundations of Computational
    Mathematics 17, 2017, section 3; Chen et al., "ZOO", AISec 2017 (of a classifier's loss, by its pixels); Tu et al.,
    "AutoZOOM", AAAI 2019 (along coarse directions); Zhang et al., "How to Robustify Black-Box ML Models?", ICLR 2022
    (through a network in front, by its output).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def draw_directions(key: jax.Array, directions: int, shape: tuple[int, ...], block: int = 1) -> jax.Array:
    """Draws standard normal directions, independent for each image.

    Args:
        key: A key of jax.random.
        directions: D.
        shape: Of the images, [N, H, W, C].
        block: Side of the squares of pixels that move together, a divisor of H and W. There are fewer directions to
            look into then, and of the gradient only what is alike within squares is seen.

    Returns:
        [D, N, H, W, C]
    """
    count, height, width, channels = shape
    coarse = jax.random.normal(key, (directions, count, height // block, width // block, channels))
    return coarse.repeat(block, axis=2).repeat(block, axis=3) if block > 1 else coarse


def perturb(images: jax.Array, drawn: jax.Array, smoothing: float) -> jax.Array:
    """Moves images along directions and against them, and keeps them in [0, 1].

    Args:
        images: In [0, 1]. [N, H, W, C]
        drawn: From `draw_directions`. [D, N, H, W, C]
        smoothing: How far, in units of a direction.

    Returns:
        [2, D, N, H, W, C]
    """
    return jnp.clip(jnp.stack([images + smoothing * drawn, images - smoothing * drawn]), 0, 1)


def from_differences(values: jax.Array, drawn: jax.Array, smoothing: float, block: int = 1) -> jax.Array:
    """Estimates the gradient of each image's value.

    Where nothing was clipped, its expectation is the gradient of the value, smoothed by a normal distribution of
    deviation `smoothing`; of a linear one it is the gradient itself, and of a quadratic one too, since each direction
    is taken both ways. Of a pixel at 0 or 1 one of the two does not move, and half of the gradient is seen.

    Args:
        values: Of the images that `perturb` gave. [2, D, N]
        drawn: Directions. [D, N, H, W, C]
        smoothing: As `perturb` had it.
        block: As `draw_directions` had it; each square's sum is spread over its pixels.

    Returns:
        [N, H, W, C]
    """
    slopes = (values[0] - values[1]) / (2 * smoothing)  # [D, N]
    return jnp.einsum("dn,dnhwc->nhwc", slopes, drawn) / (len(drawn) * block**2)


def estimate_gradient(
    function: Callable[[np.ndarray], np.ndarray],
    images: jax.Array,
    key: jax.Array,
    *,
    directions: int,
    smoothing: float,
    block: int = 1,
) -> jax.Array:
    """Estimates the gradient of a function of each image, by 2 * D evaluations an image.

    Args:
        function: (images [M, H, W, C]) -> values [M], whatever computes them.
        images: In [0, 1]. [N, H, W, C]
        key: For the directions.
        directions: D.
        smoothing: How far images are moved.
        block: See `draw_directions`.

    Returns:
        [N, H, W, C]
    """
    drawn = draw_directions(key, directions, images.shape, block)
    shown = perturb(images, drawn, smoothing)
    values = jnp.asarray(function(np.asarray(shown.reshape(-1, *images.shape[1:]))))
    return from_differences(values.reshape(shown.shape[:3]), drawn, smoothing, block)
