"""Output mapping: a permutation of the classes, drawn once without fixed points and kept with the U-Net."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from refine_jax.errors import SettingError


def derangement(key: jax.Array, num_classes: int) -> jax.Array:
    """Draws a permutation of the classes that leaves none in its place, each such permutation equally likely.

    Args:
        key: A key of jax.random.
        num_classes: K, at least 2.

    Returns:
        permutation: the classifier's class i becomes class permutation[i]. int32 [K]

    Raises:
        SettingError: One class alone has to stay where it is.

    References:
        Chen et al., REFINE, ICLR 2025, section 4.2; the released program draws likewise, until nothing stays.
    """
    _require_classes(num_classes)
    classes = jnp.arange(num_classes, dtype=jnp.int32)

    def draw_again(carry):
        key, _ = carry
        key, subkey = jax.random.split(key)
        return key, jax.random.permutation(subkey, classes)

    # A draw has no fixed point with probability near 1/e, so about 2.7 draws are needed.
    _, permutation = jax.lax.while_loop(lambda carry: jnp.any(carry[1] == classes), draw_again, (key, classes))
    return permutation


def shift(key: jax.Array, num_classes: int) -> jax.Array:
    """Sends every class to the next and the last to the first: i -> i + 1 modulo K, whatever the key.

    Returns:
        As `derangement`.

    Raises:
        SettingError: One class alone has to stay where it is.
    """
    del key
    _require_classes(num_classes)
    return jnp.roll(jnp.arange(num_classes, dtype=jnp.int32), -1)


def identity(key: jax.Array, num_classes: int) -> jax.Array:
    """Leaves every class where it is, whatever the key: an ablation of the mapping.

    Returns:
        As `derangement`.
    """
    del key
    return jnp.arange(num_classes, dtype=jnp.int32)


# (key, K) -> permutation. int32 [K]
MAPPINGS: dict[str, Callable[[jax.Array, int], jax.Array]] = {
    "derangement": derangement,
    "shift": shift,
    "identity": identity,
}


def remap(probabilities: jax.Array, permutation: jax.Array) -> jax.Array:
    """Gives the probability of the classifier's class i to class permutation[i]: q[pi(i)] = p[i].

    Args:
        probabilities: Or any scores. [N, K]
        permutation: Integers [K]

    Returns:
        [N, K]
    """
    chex.assert_rank([probabilities, permutation], [2, 1])
    chex.assert_shape(permutation, (probabilities.shape[1],))
    return probabilities[:, jnp.argsort(permutation)]


def _require_classes(num_classes: int) -> None:
    if num_classes < 2:
        raise SettingError("num_classes", num_classes, "at least 2, for one class alone cannot move")
