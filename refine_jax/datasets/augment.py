"""Augmentation on the device: flips, shifts, crops that are resized back, grayscale; one draw for each image.

`axis_name` is that of the mapped axis over which a batch is split, None where it is not; an image's draw is the same.
"""

import chex
import jax
import jax.numpy as jnp

from refine_jax import mapped

# Luma weights of ITU-R BT.601, as in Pillow and torchvision.
_LUMA = (0.2989, 0.587, 0.114)
_CROP_TRIES = 10


def random_flip(images: jax.Array, key: jax.Array, *, axis_name: str | None = None) -> jax.Array:
    """Mirrors each image left to right with probability 1/2.

    Args:
        images: [N, H, W, C]
        key: A key of jax.random.
        axis_name: See above.

    Returns:
        [N, H, W, C]
    """
    chex.assert_rank(images, 4)
    flip = mapped.draw(lambda n: jax.random.bernoulli(key, shape=(n, 1, 1, 1)), len(images), axis_name)
    return jnp.where(flip, images[:, :, ::-1], images)


def random_grayscale(
    images: jax.Array, key: jax.Array, probability: float = 0.2, *, axis_name: str | None = None
) -> jax.Array:
    """Takes the color out of each image with the given probability; it keeps three equal channels.

    Args:
        images: RGB. [N, H, W, 3]
        key: A key of jax.random.
        probability: Of an image to lose its color.
        axis_name: See above.

    Returns:
        [N, H, W, 3]

    References:
        torchvision.transforms.RandomGrayscale.
    """
    chex.assert_rank(images, 4)
    chex.assert_axis_dimension(images, 3, 3)
    luma = (images * jnp.asarray(_LUMA, images.dtype)).sum(axis=-1, keepdims=True)  # [N, H, W, 1]
    gray = mapped.draw(lambda n: jax.random.bernoulli(key, probability, shape=(n, 1, 1, 1)), len(images), axis_name)
    return jnp.where(gray, luma, images)


def random_crop(images: jax.Array, key: jax.Array, padding: int, *, axis_name: str | None = None) -> jax.Array:
    """Moves each image by up to `padding` pixels, black coming in at the sides; every place is equally likely.

    Args:
        images: [N, H, W, C]
        key: A key of jax.random.
        padding: In pixels, on every side.
        axis_name: See above.

    Returns:
        [N, H, W, C]

    References:
        torchvision.transforms.RandomCrop((H, W), padding).
    """
    chex.assert_rank(images, 4)
    n, height, width, channels = images.shape
    places = mapped.draw(lambda n: jax.random.randint(key, (n, 2), 0, 2 * padding + 1), n, axis_name)
    around = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))

    def cut(image: jax.Array, place: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (place[0], place[1], 0), (height, width, channels))

    return jax.vmap(cut)(around, places)


def random_resized_crop(
    images: jax.Array,
    key: jax.Array,
    area: tuple[float, float] = (0.8, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
    *,
    axis_name: str | None = None,
) -> jax.Array:
    """Cuts a box out of each image and resizes it back to the full size, bilinearly.

    The box has whole pixels; its share of the area is uniform and its aspect log-uniform. A box that does
    not fit is drawn again, ten times at most; then the whole image stays.

    Args:
        images: [N, H, W, C]
        key: A key of jax.random.
        area: Least and largest share of the image's area.
        aspect: Least and largest width over height.
        axis_name: See above.

    Returns:
        [N, H, W, C]

    References:
        torchvision.transforms.RandomResizedCrop, whose last resort is the whole image too, as long as its own
        aspect lies within `aspect`; beyond, torchvision cuts a box of the nearest aspect out of the middle.
    """
    chex.assert_rank(images, 4)
    n, height, width, _ = images.shape
    top, left, box_height, box_width = mapped.draw(
        lambda n: _draw_boxes(key, n, height, width, area, aspect), n, axis_name
    )
    rows = _resampling(top, box_height, height).astype(images.dtype)  # [N, H, H]
    columns = _resampling(left, box_width, width).astype(images.dtype)  # [N, W, W]
    # Each pixel of the outcome is a weighted sum of two rows of two pixels: two small matrix products.
    precision = jax.lax.Precision.HIGHEST
    images = jnp.einsum("nij,njwc->niwc", rows, images, precision=precision)
    return jnp.einsum("nij,nhjc->nhic", columns, images, precision=precision)


def _draw_boxes(key, n, height, width, area, aspect):
    """Whole-pixel boxes: top, left, height and width, each [N]."""
    area_key, aspect_key, top_key, left_key = jax.random.split(key, 4)
    shape = (n, _CROP_TRIES)
    areas = height * width * jax.random.uniform(area_key, shape, minval=area[0], maxval=area[1])
    log_aspect = jnp.log(jnp.asarray(aspect, jnp.float32))
    aspects = jnp.exp(jax.random.uniform(aspect_key, shape, minval=log_aspect[0], maxval=log_aspect[1]))
    box_widths = jnp.round(jnp.sqrt(areas * aspects)).astype(jnp.int32)
    box_heights = jnp.round(jnp.sqrt(areas / aspects)).astype(jnp.int32)
    fits = (box_widths > 0) & (box_widths <= width) & (box_heights > 0) & (box_heights <= height)

    first = fits.argmax(axis=1)[:, None]
    found = fits.any(axis=1)
    box_height = jnp.where(found, jnp.take_along_axis(box_heights, first, axis=1)[:, 0], height)
    box_width = jnp.where(found, jnp.take_along_axis(box_widths, first, axis=1)[:, 0], width)
    top = jax.random.randint(top_key, (n,), 0, height - box_height + 1)
    left = jax.random.randint(left_key, (n,), 0, width - box_width + 1)
    return top, left, box_height, box_width


def _resampling(start: jax.Array, length: jax.Array, size: int) -> jax.Array:
    """Matrices that stretch the pixels from `start` to `start + length` over `size` pixels.  [N, size, size]

    Half-pixel centers; beyond the box's edge its outermost pixel goes on.
    """
    length = length[:, None].astype(jnp.float32)
    where = (jnp.arange(size) + 0.5) * length / size - 0.5  # in the box  [N, size]
    where = jnp.clip(where, 0, length - 1) + start[:, None]  # in the image
    distance = jnp.abs(where[:, :, None] - jnp.arange(size))  # [N, size, size]
    return jnp.maximum(0, 1 - distance)
