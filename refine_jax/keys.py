"""Chance: one seed, and a key of its own for everything that is drawn, found by name."""

import numbers
import zlib

import jax
import jax.numpy as jnp

from refine_jax.errors import SettingError

# jax.random.key would drop the bits beyond, so that other seeds would draw the same.
LARGEST_SEED = 2**32 - 1


def named_key(seed: int | jax.Array, *names: str | int | jax.Array) -> jax.Array:
    """Returns the key that belongs to `names` under `seed`.

    Names are folded in one after another, so that what is drawn under one name does not move when
    something else is drawn before it.

    Args:
        seed: An integer from 0 to `LARGEST_SEED`, or a key made by `jax.random.key` or by this function.
        *names: Strings (hashed by CRC-32, which is the same on every machine) or integers (a step, an epoch), traced
            ones too.

    Returns:
        A scalar key array.

    Raises:
        SettingError: The integer is too small or too large.
    """
    if isinstance(seed, numbers.Integral):
        if not 0 <= int(seed) <= LARGEST_SEED:
            raise SettingError("seed", seed, f"0 to {LARGEST_SEED}")
        seed = jax.random.key(int(seed))
    key = jnp.asarray(seed)
    for name in names:
        key = jax.random.fold_in(key, zlib.crc32(name.encode()) if isinstance(name, str) else name)
    return key
