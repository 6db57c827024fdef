"""The vision transformer's own parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refine_jax import networks
from refine_jax.errors import SettingError
from refine_jax.networks import vit
from tests.goldens import rules

SMALL = {"image_size": 16, "dim": 8, "depth": 1, "heads": 2, "mlp_dim": 8}


def test_copies_are_moved_right_left_down_and_up():
    image = np.arange(1, 10, dtype=np.float32).reshape(1, 3, 3, 1)
    copies = np.asarray(vit.shifted(jnp.asarray(image)))[0].transpose(2, 0, 1)
    np.testing.assert_array_equal(
        copies,
        [
            [[1, 2, 3], [4, 5, 6], [7, 8, 9]],
            [[0, 1, 2], [0, 4, 5], [0, 7, 8]],
            [[2, 3, 0], [5, 6, 0], [8, 9, 0]],
            [[0, 0, 0], [1, 2, 3], [4, 5, 6]],
            [[4, 5, 6], [7, 8, 9], [0, 0, 0]],
        ],
    )


def test_patches_are_flattened_by_row_column_channel():
    images = np.random.default_rng(0).random((2, 6, 4, 3), dtype=np.float32)
    got = vit.patches(jnp.asarray(images), 2)
    assert got.shape == (2, 6, 12)
    np.testing.assert_array_equal(got[1, 3], images[1, 2:4, 2:4].ravel())


def test_dropout_is_drawn_from_its_key_while_training():
    module = networks.build("vit", 3, **SMALL, dropout=0.5)
    images = np.random.default_rng(0).random((2, 16, 16, 3), dtype=np.float32)
    variables = rules.variables(module, images.shape)
    apply = jax.jit(lambda key: module.apply(variables, images, train=True, rngs={"dropout": key}))
    first, second = apply(jax.random.key(0)), apply(jax.random.key(1))
    np.testing.assert_array_equal(first, apply(jax.random.key(0)))
    assert not np.allclose(first, second)


def test_images_of_another_size_are_refused():
    module = networks.build("vit", 3, **SMALL)
    variables = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    with pytest.raises(SettingError, match=r"vit.image_size = 16.*32 x 32"):
        jax.eval_shape(module.apply, variables, jnp.zeros((1, 32, 32, 3)))
