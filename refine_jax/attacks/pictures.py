"""Built-in pictures, drawn by code: the same motif at any size."""

import jax
import jax.numpy as jnp
import numpy as np

_WHITE, _BLUE, _RED, _YELLOW = (255, 255, 255), (40, 90, 230), (230, 40, 50), (255, 200, 20)


def sunburst(image_size: tuple[int, int], key: jax.Array) -> np.ndarray:
    """Draws colored rays behind dark rings, for Blended.

    Args:
        image_size: (H, W).
        key: For the center and the colors.

    Returns:
        uint8. [H, W, 3]
    """
    center_x, center_y, turn, hue = np.asarray(jax.random.uniform(key, (4,), jnp.float32), np.float64)
    height, width = image_size
    y = ((np.arange(height) + 0.5) / height - 0.3 - 0.4 * center_y)[:, np.newaxis]
    x = ((np.arange(width) + 0.5) / width - 0.3 - 0.4 * center_x)[np.newaxis]
    rays = 12
    ray = np.floor((np.arctan2(y, x) / (2 * np.pi) + turn) % 1.0 * rays).astype(int) % rays  # [H, W]
    hues = (hue + np.arange(rays) / rays)[:, np.newaxis] + np.array([0, 1 / 3, 2 / 3])
    colors = np.where(np.arange(rays)[:, np.newaxis] % 2 == 0, 255, 128 + 127 * np.cos(2 * np.pi * hues))
    ring = np.floor(np.hypot(y, x) * 10) % 4 == 1
    return np.rint(np.where(ring[..., np.newaxis], 0, colors[ray])).astype(np.uint8)


def adaptive_patches(image_size: tuple[int, int], key: jax.Array) -> np.ndarray:
    """Draws four patterns on black, for Adaptive-Patch; sizes are given for 32 x 32 and grow with the shorter side.

    A square of 5 at the lower right; a checkered square of 3 in every corner; a pinwheel of 12 across at the upper
    right; a mosaic of 8, whose colors are drawn, toward the lower right.

    Args:
        image_size: (H, W).
        key: For the mosaic.

    Returns:
        uint8. [4, H, W, 3]
    """
    height, width = image_size
    unit = min(height, width) / 32
    # Distances of pixel centers from the edges, in 32nds of the shorter side.
    top, left = ((np.arange(side) + 0.5) / unit for side in (height, width))
    top, left = top[:, np.newaxis], left[np.newaxis]
    bottom, right = top[::-1], left[:, ::-1]

    def paint(pattern: np.ndarray, mask: np.ndarray, color: tuple[int, int, int]) -> None:
        pattern[np.broadcast_to(mask, (height, width))] = color

    square, corners, pinwheel, mosaic = patterns = np.zeros((4, height, width, 3), np.uint8)
    for side, color in ((5, _BLUE), (4, _WHITE), (2, _BLUE)):
        paint(square, np.maximum(np.abs(bottom - 2.5), np.abs(right - 2.5)) < side / 2, color)
    for vertical in (top, bottom):
        for horizontal in (left, right):
            checkered = (np.floor(vertical) + np.floor(horizontal)) % 2 == 0
            paint(corners, (vertical < 3) & (horizontal < 3) & checkered, _WHITE)
    angle = np.floor(np.arctan2(top - 7, right - 7) / (2 * np.pi) * 6) % 3
    for sector, color in enumerate((_RED, _YELLOW, _BLUE)):
        paint(pinwheel, (np.hypot(top - 7, right - 7) < 6) & (angle == sector), color)
    colors = np.asarray(jax.random.randint(key, (8, 8, 3), 1, 256, jnp.int32)).astype(np.uint8)
    rows, columns = (np.floor(distance - 3).astype(int) for distance in (bottom, right))
    inside = (rows >= 0) & (rows < 8) & (columns >= 0) & (columns < 8)
    mosaic[inside] = colors[np.clip(rows, 0, 7), np.clip(columns, 0, 7)][inside]
    return patterns
