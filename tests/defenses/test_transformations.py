"""Blur, JPEG and bit depth: held to SciPy, to Pillow and to arithmetic."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings, strategies
from PIL import Image
from sklearn.datasets import load_sample_image

from refine_jax import asking, pipeline
from refine_jax.datasets.images import Split
from refine_jax.defenses import bit_depth, gaussian_blur, jpeg
from refine_jax.defenses.registry import DEFENSES
from refine_jax.errors import SettingError
from tests.small_run import config, tiny_fixture  # noqa: F401

SETTINGS = {"gaussian_blur": {"sigma": 0.8}, "jpeg": {"quality": 40}, "bit_depth": {"bits": 2}}


def photographs(height, width, count=6):
    """Pieces of a photograph.  uint8 [N, H, W, 3]"""
    china = load_sample_image("china.jpg")
    places = np.random.default_rng(0).integers(0, (427 - height, 640 - width), (count, 2))
    return np.stack([china[top : top + height, left : left + width] for top, left in places])


def to_unit(images):
    return images.astype(np.float32) / 255


def compressed(image, quality):
    """What Pillow makes of it."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


@jax.jit
def show(defended, images):
    return defended.transform(images)


def brightness(images):
    """A classifier, of three classes."""
    return images.mean(axis=(1, 2))


def defend(name, images, own=None):
    classifier = jax.tree_util.Partial(brightness)
    return DEFENSES[name].fit(classifier, Split.unlabeled(images), own or SETTINGS[name], 0, 3).defended


@pytest.mark.parametrize("name", SETTINGS)
def test_images_of_whole_numbers_are_refused(name):
    images = photographs(8, 8)
    with pytest.raises(AssertionError, match="uint8"):
        defend(name, images)(images)


@pytest.mark.parametrize("size", [(32, 32), (17, 23), (5, 4)])
def test_jpeg_is_bit_for_bit_pillows(size):
    images = photographs(*size)
    noise = np.random.default_rng(0).integers(0, 256, images.shape, dtype=np.uint8)
    images = np.concatenate([images, noise, (noise > 127) * np.uint8(255)])
    for quality in (1, 10, 50, 75, 95, 100):
        found = show(defend("jpeg", images, {"quality": quality}), to_unit(images))
        expected = np.stack([compressed(image, quality) for image in images])
        np.testing.assert_array_equal(np.rint(np.asarray(found) * 255), expected)
    assert found.min() >= 0
    assert found.max() <= 1


@pytest.mark.parametrize("sigma", [0.3, 1.0, 6.0])
def test_blur_is_scipys(sigma):
    images = photographs(12, 15)
    found = show(defend("gaussian_blur", images, {"sigma": sigma}), to_unit(images))
    np.testing.assert_allclose(found, scipy.ndimage.gaussian_filter(to_unit(images), (0, sigma, sigma, 0)), atol=2e-6)


@settings(max_examples=30, deadline=None)
@given(strategies.integers(1, 7), strategies.integers(0, 255))
def test_a_channel_goes_to_the_nearest_of_few_levels(bits, value):
    found = float(bit_depth.reduce_depth(jnp.float32(value / 255), jnp.float32(2**bits - 1)))
    levels = np.arange(2**bits) / (2**bits - 1)
    assert np.abs(levels - found).min() < 1e-6
    assert abs(found - value / 255) <= np.abs(levels - value / 255).min() + 1e-6


@pytest.mark.parametrize("name", SETTINGS)
def test_the_classifier_is_shown_the_changed_image(name):
    images = photographs(16, 16)
    defended = defend(name, images)
    shown = show(defended, to_unit(images))
    assert np.abs(np.asarray(shown) - to_unit(images)).max() > 0.02
    found = asking.compiled(defended)(to_unit(images))
    np.testing.assert_allclose(found, jax.nn.softmax(brightness(shown)), rtol=1e-5)
    assert defended.parts() == {}
    assert defended.permutation is None


@pytest.mark.parametrize(
    ("module", "own", "message"),
    [
        (gaussian_blur, {"sigma": 0.0}, r"at\.sigma = 0\.0: allowed: above 0 and at most 8 for images of 8 x 9"),
        (gaussian_blur, {"sigma": 8.5}, r"at\.sigma = 8\.5"),
        (gaussian_blur, {"sigma": float("nan")}, r"at\.sigma = nan"),
        (jpeg, {"quality": 0}, r"at\.quality = 0: allowed: 1 to 100"),
        (jpeg, {"quality": 101}, r"at\.quality = 101"),
        (bit_depth, {"bits": 0}, r"at\.bits = 0: allowed: 1 to 7"),
        (bit_depth, {"bits": 8}, r"at\.bits = 8"),
    ],
)
def test_impossible_settings_are_refused(module, own, message):
    with pytest.raises(SettingError, match=message):
        module.check("at", own, 5, (8, 9))


def test_they_stand_in_a_run_side_by_side(tmp_path, tiny):
    all_three = config(defense__names=tuple(SETTINGS))
    results = pipeline.run(all_three, str(tmp_path))
    assert [*results["defenses"]] == [*SETTINGS]
    for figures in results["defenses"].values():
        assert figures["needs"] == {"gradients": False, "labels": False, "clean_images": False}
        assert (figures["parameters"], figures["train_seconds"], figures["mapped_asr"]) == (0, 0, None)
        assert figures["counts"]["ba"][1] == len(tiny.test)
