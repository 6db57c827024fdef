"""Images moved and lit anew on the device: sampling along grids, rotations, affine maps, brightness.

Images are [N, H, W, C]. What moves whole pixels is split in two: where each pixel comes from (a flat index into the
source image, -1 for black), and `take_pixels`, which is exact for any type of image.
"""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np


def identity_grid(image_size: tuple[int, int]) -> np.ndarray:
    """Returns where each pixel of an image lies, (x, y) from -1 to 1 at the outermost pixels' centers. [H, W, 2]"""
    height, width = image_size
    x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    return np.stack([x, y], axis=-1)


def upsample_bicubic(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Enlarges a grid of control points, bicubically and with aligned corners.

    On the host, in float64: a warp is drawn once and must be the same on every machine.

    Args:
        values: [..., k, l], k and l at least 2.
        size: (H, W).

    Returns:
        float64. [..., H, W]

    Source: `interpolate(mode='bicubic', align_corners=True)` of PyTorch, Keys' kernel with a = -0.75.
    """
    rows, columns = (_bicubic_matrix(points, side) for points, side in zip(values.shape[-2:], size, strict=True))
    return rows @ np.asarray(values, np.float64) @ columns.T


def _bicubic_matrix(points: int, side: int) -> np.ndarray:
    """Weights with which control points enter the values in between; those beyond the ends repeat. [side, points]"""
    position = np.arange(side) * ((points - 1) / (side - 1))
    first = np.floor(position).astype(int)
    matrix = np.zeros((side, points))
    for tap in range(-1, 3):
        weight = _keys_kernel(np.abs(position - first - tap))
        np.add.at(matrix, (np.arange(side), np.clip(first + tap, 0, points - 1)), weight)
    return matrix


def _keys_kernel(distance: np.ndarray, a: float = -0.75) -> np.ndarray:
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))


def grid_sample(images: jax.Array, grid: jax.Array) -> jax.Array:
    """Samples images bilinearly; black outside of them.

    Args:
        images: Floats. [N, H, W, C]
        grid: (x, y) as in `identity_grid`, one for all images or one each. [h, w, 2] or [N, h, w, 2]

    Returns:
        Floats of the images' type. [N, h, w, C]

    Source: `grid_sample(align_corners=True)` of PyTorch with its defaults.
    """
    chex.assert_rank([images, grid], [4, {3, 4}])
    return jax.vmap(_sample_image, in_axes=(0, None if grid.ndim == 3 else 0))(images, grid.astype(images.dtype))


def _sample_image(image: jax.Array, grid: jax.Array) -> jax.Array:
    height, width, channels = image.shape
    x, y = ((grid[..., i] + 1) / 2 * (side - 1) for i, side in enumerate((width, height)))  # [h, w]
    left, top = jnp.floor(x), jnp.floor(y)
    pixels = image.reshape(-1, channels)
    total = jnp.zeros((*grid.shape[:2], channels), image.dtype)
    for column, weight_x in ((left, left + 1 - x), (left + 1, x - left)):
        for row, weight_y in ((top, top + 1 - y), (top + 1, y - top)):
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            index = jnp.where(inside, row * width + column, 0).astype(jnp.int32)
            weight = jnp.where(inside, weight_x * weight_y, 0)
            total += pixels[index] * weight[..., jnp.newaxis]
    return total


def take_pixels(images: jax.Array, source: jax.Array) -> jax.Array:
    """Puts images together anew out of their pixels.

    Args:
        images: Of any type. [N, H, W, C]
        source: Flat index of the pixel that comes to each place, -1 for black; one for all images or one each.
            [h, w] or [N, h, w]

    Returns:
        Of the images' type. [N, h, w, C]
    """
    chex.assert_rank([images, source], [4, {2, 3}])

    def take(image, source):
        pixels = image.reshape(-1, image.shape[-1])[jnp.maximum(source, 0)]
        return jnp.where(source[..., jnp.newaxis] >= 0, pixels, jnp.zeros((), image.dtype))

    return jax.vmap(take, in_axes=(0, None if source.ndim == 2 else 0))(images, source)


def rotation_source(image_size: tuple[int, int], angle: float) -> np.ndarray:
    """Returns where pixels come from in an image that is rotated about its center, by the nearest neighbor.

    Args:
        image_size: (H, W).
        angle: Degrees, counter-clockwise.

    Returns:
        int32, for `take_pixels`. [H, W]

    Source: `Image.rotate` of Pillow with its defaults, in whose fixed-point numbers of 16 bits behind the point.
    """
    height, width = image_size
    radians = -math.radians(angle % 360.0)
    cosine, sine = round(math.cos(radians), 15), round(math.sin(radians), 15)

    def coordinate(by_x: float, by_y: float, center: float) -> np.ndarray:
        # The source coordinate of each output pixel's center; floor makes it the pixel that contains it.
        start = by_x * (-width / 2) + by_y * (-height / 2) + center
        by_x_fixed, by_y_fixed = math.floor(by_x * 65536 + 0.5), math.floor(by_y * 65536 + 0.5)
        start_fixed = math.floor((start + by_x * 0.5 + by_y * 0.5) * 65536 + 0.5)
        return (start_fixed + by_x_fixed * np.arange(width) + by_y_fixed * np.arange(height)[:, np.newaxis]) >> 16

    x, y = coordinate(cosine, sine, width / 2), coordinate(-sine, cosine, height / 2)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return np.where(inside, y * width + x, -1).astype(np.int32)


def affine_source(
    image_size: tuple[int, int], angle: jax.Array, shift: tuple[jax.Array, jax.Array], scale: jax.Array
) -> jax.Array:
    """Returns where pixels come from in an image that is rotated, scaled and shifted, by the nearest neighbor.

    Args:
        image_size: (H, W).
        angle: Degrees, clockwise. []
        shift: (x, y), pixels to the right and down. [], []
        scale: Above 0. []

    Returns:
        int32, for `take_pixels`. [H, W]

    Source: `affine` of torchvision on tensors, nearest, without shear, filled with 0.
    """
    height, width = image_size
    dtype = jnp.result_type(float)
    x = jnp.arange(width, dtype=dtype) - (width - 1) / 2 - shift[0]  # [W]
    y = (jnp.arange(height, dtype=dtype) - (height - 1) / 2 - shift[1])[:, jnp.newaxis]  # [H, 1]
    cosine, sine = jnp.cos(jnp.deg2rad(angle)), jnp.sin(jnp.deg2rad(angle))
    column = jnp.round((cosine * x + sine * y) / scale + (width - 1) / 2)
    row = jnp.round((cosine * y - sine * x) / scale + (height - 1) / 2)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return jnp.where(inside, row * width + column, -1).astype(jnp.int32)


def random_affine(
    images: jax.Array,
    key: jax.Array,
    degrees: float,
    shift: float = 0.0,
    scale: tuple[float, float] = (1.0, 1.0),
) -> jax.Array:
    """Rotates, shifts and scales each image by chance.

    Args:
        images: Of any type. [N, H, W, C]
        key: For all of them.
        degrees: Angles are uniform within this.
        shift: Shifts are uniform within this share of the sides, and then rounded to whole pixels.
        scale: Scales are uniform between these.

    Returns:
        Of the images' type. [N, H, W, C]

    Source: `RandomAffine` of torchvision.
    """
    height, width = images.shape[1:3]

    def draw_source(key):
        angle_key, x_key, y_key, scale_key = jax.random.split(key, 4)
        angle = jax.random.uniform(angle_key, minval=-degrees, maxval=degrees)
        to_right = jnp.round(jax.random.uniform(x_key, minval=-shift * width, maxval=shift * width))
        down = jnp.round(jax.random.uniform(y_key, minval=-shift * height, maxval=shift * height))
        factor = jax.random.uniform(scale_key, minval=scale[0], maxval=scale[1])
        return affine_source((height, width), angle, (to_right, down), factor)

    return take_pixels(images, jax.vmap(draw_source)(jax.random.split(key, len(images))))


def adjust_brightness(images: jax.Array, factors: jax.Array) -> jax.Array:
    """Returns images in [0, 1] times one factor each, clipped to [0, 1].

    Args:
        images: [N, H, W, C]
        factors: [N]

    Source: `adjust_brightness` of torchvision.
    """
    chex.assert_shape(factors, images.shape[:1])
    return jnp.clip(images * factors.astype(images.dtype)[:, None, None, None], 0, 1)


def random_brightness(images: jax.Array, key: jax.Array, width: float) -> jax.Array:
    """Makes each image in [0, 1] brighter or darker, by a factor uniform in 1 - width to 1 + width. [N, H, W, C]"""
    factors = jax.random.uniform(key, images.shape[:1], minval=max(0.0, 1 - width), maxval=1 + width)
    return adjust_brightness(images, factors)
