"""The output mapping."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refine_jax.defenses import mapping
from refine_jax.errors import SettingError
from tests.goldens import rules


@pytest.mark.parametrize("num_classes", [2, 3, 10, 1000])
def test_a_derangement_moves_every_class(num_classes):
    keys = jax.random.split(jax.random.key(0), 20)
    drawn = np.asarray(jax.jit(jax.vmap(lambda key: mapping.derangement(key, num_classes)))(keys))
    assert drawn.dtype == np.int32
    np.testing.assert_array_equal(np.sort(drawn, axis=1), np.tile(np.arange(num_classes), (20, 1)))
    assert not np.any(drawn == np.arange(num_classes))


def test_every_derangement_is_as_likely():
    """Of four classes there are nine."""
    keys = jax.random.split(jax.random.key(0), 9000)
    drawn = np.asarray(jax.jit(jax.vmap(lambda key: mapping.derangement(key, 4)))(keys))
    found, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(found) == 9
    # Five standard deviations of a count.
    np.testing.assert_allclose(counts, 1000, atol=5 * np.sqrt(1000 * 8 / 9))


def test_a_derangement_follows_its_key():
    first, second = (mapping.derangement(jax.random.key(seed), 50) for seed in (0, 1))
    np.testing.assert_array_equal(first, mapping.derangement(jax.random.key(0), 50))
    assert not np.array_equal(first, second)
    with jax.enable_x64(True):
        assert mapping.derangement(jax.random.key(0), 50).dtype == jnp.int32


@pytest.mark.parametrize("num_classes", [1, 0])
def test_one_class_alone_cannot_move(num_classes):
    with pytest.raises(ValueError, match=rf"num_classes = {num_classes}: allowed: "):
        mapping.derangement(jax.random.key(0), num_classes)


def test_other_mappings_by_hand():
    for key in (jax.random.key(0), jax.random.key(1)):
        np.testing.assert_array_equal(mapping.shift(key, 4), [1, 2, 3, 0])
        np.testing.assert_array_equal(mapping.identity(key, 4), [0, 1, 2, 3])
    p = np.array([[0.7, 0.2, 0.1]])
    np.testing.assert_array_equal(mapping.remap(p, mapping.shift(jax.random.key(0), 3)), [[0.1, 0.7, 0.2]])
    for function in mapping.MAPPINGS.values():
        assert function(jax.random.key(0), 3).dtype == np.int32
    with pytest.raises(SettingError, match="num_classes = 1: allowed: at least 2"):
        mapping.shift(jax.random.key(0), 1)


class Variants(chex.TestCase):
    """Compiled and not."""

    @chex.variants(with_jit=True, without_jit=True)
    def test_class_i_becomes_class_pi_of_i(self):
        """As the released program writes it: q[:, permutation[i]] = p[:, i]."""
        permutation = rules.load("losses/refine_step.npz")["permutation"]
        p = np.random.default_rng(0).random((5, 10), dtype=np.float32)
        expected = np.empty_like(p)
        for i in range(10):
            expected[:, permutation[i]] = p[:, i]
        np.testing.assert_array_equal(self.variant(mapping.remap)(p, permutation), expected)


def test_remapping_and_back_is_nothing():
    p = np.random.default_rng(0).random((3, 1000), dtype=np.float32)
    permutation = mapping.derangement(jax.random.key(0), 1000)
    back = mapping.remap(mapping.remap(p, permutation), jnp.argsort(permutation))
    np.testing.assert_array_equal(back, p)


@pytest.mark.parametrize(("scores", "permutation"), [((2, 3), (4,)), ((3,), (3,)), ((2, 3), (1, 3))])
def test_other_shapes_are_refused(scores, permutation):
    with pytest.raises(AssertionError):
        mapping.remap(jnp.ones(scores), jnp.zeros(permutation, jnp.int32))
