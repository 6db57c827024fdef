"""The masked autoencoder. That the published weights give the published answers, tests/interop shows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refine_jax.errors import SettingError
from refine_jax.networks.mae import MaskedAutoencoder, positions

MODULE = MaskedAutoencoder(patch_size=2, width=8, depth=1, heads=2, decoder_width=4, decoder_depth=1, decoder_heads=1)
SIZE = (4, 6)  # six patches
IMAGES = np.random.default_rng(0).normal(size=(2, *SIZE, 3)).astype(np.float32)
HIDDEN = np.array([[True, False, True, True, False, True], [False, True, True, True, True, True]])


@pytest.fixture(scope="module")
def answer():
    params = jax.jit(MODULE.init)(jax.random.key(0), jnp.zeros((1, *SIZE, 3)))

    @jax.jit
    def both(images):
        return MODULE.apply(params, images, HIDDEN, 2), MODULE.apply(params, images, HIDDEN)

    return lambda images=IMAGES: np.asarray(both(images))


def test_every_patch_has_an_answer_and_the_visible_ones_alone_are_looked_at(answer):
    fewest, all_tokens = answer()
    assert fewest.shape == (2, 6, 2 * 2 * 3)
    # One image has two visible patches, the other one: to leave the hidden out changes nothing.
    np.testing.assert_allclose(fewest, all_tokens, atol=1e-5)
    behind = IMAGES.copy()
    behind[0, 0:2, 0:2] += 5  # patch 0
    behind[1, 2:4, 4:6] += 5  # patch 5
    np.testing.assert_allclose(answer(behind), answer(), atol=1e-5)
    shown = IMAGES.copy()
    shown[0, 0:2, 2:4] += 5  # patch 1
    assert (np.abs(answer(shown) - answer())[0, 0] > 1e-3).any(axis=-1).all()


def test_positions_are_sines_and_cosines_of_column_and_row():
    found = positions(8, 2, 3)
    # The patch of row 1 and column 2; frequencies 1 and 1 / 100.
    expected = [*np.sin([2, 0.02]), *np.cos([2, 0.02]), *np.sin([1, 0.01]), *np.cos([1, 0.01])]
    np.testing.assert_allclose(found[1 * 3 + 2], expected, rtol=1e-6)
    assert found.shape == (6, 8)


@pytest.mark.parametrize(
    ("field", "given"), [("width", {"width": 10}), ("decoder_width", {"decoder_heads": 3}), ("depth", {"depth": 0})]
)
def test_sizes_that_cannot_be_are_refused(field, given):
    with pytest.raises(SettingError, match=f"mae.{field}"):
        MODULE.clone(**given)


def test_images_that_are_not_made_of_patches_are_refused():
    with pytest.raises(SettingError, match=r"mae.patch_size = 2.*5 x 6"):
        jax.eval_shape(MODULE.init, jax.random.key(0), jnp.zeros((1, 5, 6, 3)))
