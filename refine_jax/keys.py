"""Chance: one seed, and a key of its own for everything that is drawn, found by name."""

import zlib

import jax


def named_key(seed: int | jax.Array, *names: str | int) -> jax.Array:
    """Returns the key that belongs to `names` under `seed`.

    Names are folded in one after another, so that what is drawn under one name does not move when
    something else is drawn before it.

    Args:
        seed: An integer, or a key made by `jax.random.key` or by this function.
        *names: Strings (hashed by CRC-32, which is the same on every machine) or integers (a step, an epoch).

    Returns:
        A scalar key array.
    """
    key = jax.random.key(seed) if isinstance(seed, int) else seed
    for name in names:
        key = jax.random.fold_in(key, zlib.crc32(name.encode()) if isinstance(name, str) else name)
    return key
