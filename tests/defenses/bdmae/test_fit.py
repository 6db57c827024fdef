"""BDMAE as a defense: with a small autoencoder that is trained, and with published weights."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from refine_jax.datasets.images import Split
from refine_jax.defenses.bdmae import defense, pretraining
from refine_jax.defenses.bdmae.autoencoder import nearest, normalized, to_patches, to_pixels
from refine_jax.files import hash_arrays
from refine_jax.interop import torch_weights
from refine_jax.networks.mae import MaskedAutoencoder, positions
from refine_jax.training import compilation, loop
from refine_jax.training.interruption import Interrupted
from refine_jax.training.journal import Journal
from tests.defenses.bdmae import small

QUICK = {"xla_backend_optimization_level": 0}
COLORS = np.random.default_rng(0).integers(0, 256, (40, 1, 1, 3), dtype=np.uint8)
IMAGES = np.broadcast_to(COLORS, (40, 8, 12, 3))  # the visible patches say what the others are


@pytest.fixture(autouse=True)
def quickly_compiled(monkeypatch):
    monkeypatch.setattr(compilation, "compiler_options", lambda backend: QUICK)


def journal(folder):
    return Journal(folder / "checkpoints", folder / "metrics.jsonl", {"of": "a test"}, 1, 60.0)


@jax.tree_util.Partial
def brightness(images):
    """A classifier, of three classes."""
    return images.mean(axis=(1, 2))


def fit(settings, given=None):
    return defense.fit(brightness, Split.unlabeled(IMAGES), settings, 3, 3, given)


def test_patches_are_cut_and_put_together():
    images = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    patches = to_patches(jnp.asarray(images), 2)
    np.testing.assert_array_equal(patches[1, 4], images[1, 2:4, 2:4].reshape(-1))  # second row, second column
    np.testing.assert_array_equal(to_pixels(patches, (2, 3), 2), images)


def test_what_is_trained_is_the_error_of_hidden_patches():
    images = np.full((1, 2, 4, 3), 0.25, np.float32)
    images[:, :, 2:] = 0.75
    module = small.Plain(2, 0.5)  # says 0.5
    squares = (0.25 / np.array([0.229, 0.224, 0.225])) ** 2  # in normalized units
    for hidden in ([True, False], [False, True]):
        loss = pretraining.reconstruction(module, {}, images, jnp.array([hidden]), 1)
        np.testing.assert_allclose(loss, squares.mean(), rtol=1e-5)
    images[:, :, 2:] = 0.5
    assert pretraining.reconstruction(module, {}, images, jnp.array([[False, True]]), 1) < 1e-10


def test_an_autoencoder_is_trained_and_a_training_that_is_stopped_comes_to_the_same(tmp_path, monkeypatch):
    settings = small.settings(epochs=30, learning_rate=0.01)
    whole = fit(settings)
    assert whole.findings == {"mae": "a small one, trained on 40 clean images"}
    assert whole.train_seconds > 0 < whole.parameters
    run = loop._run

    def stopped(stage, step, state, data, batches, feed, schedule, stop, writer):
        stop.requested = int(state.step) == 0  # as by a signal: after this step
        return run(stage, step, state, data, batches, feed, schedule, stop, writer)

    monkeypatch.setattr(loop, "_run", stopped)
    with pytest.raises(Interrupted, match="bdmae stopped after step 1 of 60"):
        fit(settings, journal(tmp_path))
    fitted = fit(settings, journal(tmp_path))
    assert fitted.steps == whole.steps == 60
    loaded = defense.load(tmp_path / "checkpoints", brightness, settings, (8, 12))
    for other in (fitted.defended, loaded):
        assert hash_arrays(other.parts()) == hash_arrays(whole.defended.parts())
        assert jax.tree.structure(other) == jax.tree.structure(whole.defended)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.7 * losses[0]
    answer = jax.jit(lambda defended, images: defended(images), compiler_options=QUICK)
    probabilities = answer(loaded, IMAGES.astype(np.float32) / 255)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert probabilities.shape == (40, 3)


def published(path):
    """Writes a small autoencoder as published ones are: of 3 x 3 patches of 4 x 4 pixels."""
    module = MaskedAutoencoder(4, width=64, depth=1, heads=1, decoder_width=32, decoder_depth=1, decoder_heads=1)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 12, 12, 3), np.float32))
    variables = jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32), shapes)
    entries = torch_weights.to_torch("mae", variables)
    for name, width in (("pos_embed", 64), ("decoder_pos_embed", 32)):
        entries[name] = np.pad(positions(width, 3, 3), ((1, 0), (0, 0)))[None]
    save_file({name: np.ascontiguousarray(value) for name, value in entries.items()}, path)
    return module, variables


def test_published_weights_take_images_of_any_size(tmp_path):
    module, variables = published(tmp_path / "mae.safetensors")
    settings = small.settings(mae_checkpoint=str(tmp_path / "mae.safetensors"), patch_size=5)
    defense.check("defense.bdmae", settings, 1, (8, 12))  # the small one's settings are not looked at
    fitted = fit(settings, journal(tmp_path))
    assert (fitted.findings, fitted.steps, fitted.parameters) == ({"mae": "mae.safetensors"}, 0, 0)
    loaded = defense.load(tmp_path / "checkpoints", brightness, settings, (8, 12))
    assert hash_arrays(loaded.parts()) == hash_arrays(fitted.defended.parts())

    images, hidden = IMAGES[:1].astype(np.float32) / 255, np.array([[1, 0, 0, 0, 1, 0, 0, 0, 0]], bool)

    @jax.jit
    def both(restorer, images):
        resized = normalized(jax.image.resize(images, (1, 12, 12, 3), "bilinear"))
        return restorer.of(images)(hidden), module.apply(variables, resized, hidden)

    found, patches = both(loaded.restorer, images)
    pixels = np.asarray(to_pixels(patches, (3, 3), 4)) * [0.229, 0.224, 0.225] + [0.485, 0.456, 0.406]
    pixels = np.clip(pixels[0][nearest(12, 8)], 0, 1)
    # The patches of 4 rows are 2.67 pixels high: rows 0 to 2, 3 to 5, 6 and 7.
    expected = images[0].copy()
    expected[:3, :4], expected[3:6, 4:8] = pixels[:3, :4], pixels[3:6, 4:8]
    np.testing.assert_allclose(found[0], expected, atol=1e-5)
