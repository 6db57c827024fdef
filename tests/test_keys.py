import chex
import jax
import numpy as np
import pytest

from refine_jax.errors import SettingError
from refine_jax.keys import LARGEST_SEED, named_key


def bits(key):
    return tuple(np.asarray(jax.random.key_data(key)).tolist())


def test_every_seed_and_every_name_has_a_key_of_its_own():
    names = [(), ("a",), ("b",), ("a", "b"), ("b", "a"), ("a", 0), ("a", 1), (0,), (1,)]
    seeds = [0, 1, 2**31 - 1, 2**31, LARGEST_SEED]
    assert len({bits(named_key(seed, *name)) for seed in seeds for name in names}) == len(seeds) * len(names)


def test_a_key_is_the_same_in_every_process_and_version():
    # The check value that CRC-32's specification gives for this text.
    expected = jax.random.fold_in(jax.random.fold_in(jax.random.key(7), 0xCBF43926), 3)
    assert bits(named_key(7, "123456789", 3)) == bits(expected)


def test_names_go_on_where_a_key_stopped():
    assert bits(named_key(named_key(5, "a"), "b", 2)) == bits(named_key(5, "a", "b", 2))


def test_a_traced_step_gives_the_key_of_the_step():
    key = jax.jit(lambda step: named_key(jax.random.key(3), "noise", step))(11)
    assert bits(key) == bits(named_key(3, "noise", 11))


@pytest.mark.parametrize("seed", [np.int64(6), np.uint32(6)])
def test_seeds_of_numpy_are_seeds(seed):
    chex.assert_trees_all_equal(bits(named_key(seed, "a")), bits(named_key(6, "a")))


@pytest.mark.parametrize("seed", [-1, LARGEST_SEED + 1, 2**40])
def test_a_seed_whose_bits_would_be_dropped_is_refused(seed):
    with pytest.raises(SettingError, match=rf"seed = {seed}: allowed: 0 to 4294967295"):
        named_key(seed, "a")
