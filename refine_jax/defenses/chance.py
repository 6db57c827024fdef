"""Chance at test time: drawn from the image itself, so that an image is answered alike in any batch and any order."""

import chex
import jax
import jax.numpy as jnp


def image_keys(key: jax.Array, images: jax.Array) -> jax.Array:
    """Returns a key for each image, which depends on nothing but `key` and what the image shows.

    Args:
        key: Of the defense.
        images: Float in [0, 1]; told apart to 1/255. [N, H, W, 3]

    Returns:
        Keys. [N]
    """
    chex.assert_rank(images, 4)
    pixels = jnp.round(images * 255).astype(jnp.uint32).reshape(len(images), -1)  # [N, H * W * 3]
    # A sum of the pixels, each times an odd number of its place's own, modulo 2**32.
    place = jnp.arange(pixels.shape[1], dtype=jnp.uint32)
    weights = _scrambled(place) | 1
    digests = _scrambled((_scrambled(pixels + 1 + place * 256) * weights).sum(axis=1, dtype=jnp.uint32))
    return jax.vmap(jax.random.fold_in, (None, 0))(key, digests)


def _scrambled(numbers: jax.Array) -> jax.Array:
    """A bijection of the 32-bit numbers in which every bit depends on all (MurmurHash3's finalizer)."""
    numbers = (numbers ^ (numbers >> 16)) * jnp.uint32(0x85EBCA6B)
    numbers = (numbers ^ (numbers >> 13)) * jnp.uint32(0xC2B2AE35)
    return numbers ^ (numbers >> 16)
