"""Chance at test time: drawn from the image itself, so that an image is answered alike in any batch and any order."""

import pathlib

import chex
import jax
import jax.numpy as jnp

from refine_jax.training.checkpoints import Checkpoints, read
from refine_jax.training.journal import Journal


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


def keep(key: jax.Array, journal: Journal | None) -> jax.Array:
    """Leaves the key that a defense draws with at test time among its checkpoints, as step 0.

    Args:
        key: As the seed gives it.
        journal: Of the defense; None: nothing is left.

    Returns:
        The data of the key that is kept. uint32 [2]
    """
    data = jax.random.key_data(key)
    if journal is None:
        return data
    with Checkpoints(journal.checkpoints) as checkpoints:
        kept = checkpoints.restore_newest_whole({"key": data})  # of a run that was cut short afterwards
        if kept is not None:
            return jnp.asarray(kept[0]["key"])
        checkpoints.save(0, {"key": data}, {"identity": journal.identity})
    return data


def read_kept(checkpoints: pathlib.Path) -> jax.Array:
    """Returns what `keep` has left in a folder of checkpoints.  uint32 [2]

    Raises:
        WorkdirError: There is nothing, or it is damaged.
    """
    arrays, _ = read(checkpoints)
    return jnp.asarray(arrays["key"])


def _scrambled(numbers: jax.Array) -> jax.Array:
    """A bijection of the 32-bit numbers in which every bit depends on all (MurmurHash3's finalizer)."""
    numbers = (numbers ^ (numbers >> 16)) * jnp.uint32(0x85EBCA6B)
    numbers = (numbers ^ (numbers >> 13)) * jnp.uint32(0xC2B2AE35)
    return numbers ^ (numbers >> 16)
