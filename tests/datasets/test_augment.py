"""Augmentation against torchvision's semantics, written out anew, and against the shares it promises."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refine_jax.datasets import augment

KEY = jax.random.key(3)


def pictures(n, height=8, width=8, channels=3):
    return np.random.default_rng(0).random((n, height, width, channels), dtype=np.float32)


def boxes(images, key, **limits):
    """The boxes that `random_resized_crop` draws, as four arrays of the host."""
    limits = {"area": (0.8, 1.0), "aspect": (3 / 4, 4 / 3)} | limits
    n, height, width, _ = images.shape
    return [np.asarray(part) for part in augment._draw_boxes(key, n, height, width, **limits)]


@pytest.mark.parametrize(("height", "width"), [(32, 32), (9, 9), (10, 12), (31, 32)])
def test_a_crop_is_the_resized_box(height, width):
    torch = pytest.importorskip("torch")
    images = pictures(12, height, width)
    top, left, box_height, box_width = boxes(images, KEY)
    assert np.any(box_height < height)
    got = augment.random_resized_crop(images, KEY)
    for i, image in enumerate(images):
        box = image[top[i] : top[i] + box_height[i], left[i] : left[i] + box_width[i]]
        assert box.shape[:2] == (box_height[i], box_width[i])
        expected = torch.nn.functional.interpolate(
            torch.from_numpy(box.transpose(2, 0, 1)[None].copy()),
            (height, width),
            mode="bilinear",
            align_corners=False,
        )
        np.testing.assert_allclose(got[i], expected[0].numpy().transpose(1, 2, 0), rtol=0, atol=2e-6)


def test_boxes_are_spread_as_torchvisions():
    """Share of the area uniform, aspect log-uniform, places uniform; a box that does not fit is drawn again."""
    size, n = 224, 20_000
    top, left, height, width = boxes(np.empty((n, size, size, 0)), KEY)
    assert np.all((top >= 0) & (left >= 0) & (top + height <= size) & (left + width <= size))

    # Torchvision's rule, from NumPy's draws.
    rng = np.random.default_rng(1)
    areas = rng.uniform(0.8, 1.0, (n, 10)) * size**2
    aspects = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3), (n, 10)))
    widths, heights = np.round(np.sqrt(areas * aspects)), np.round(np.sqrt(areas / aspects))
    fits = (widths <= size) & (heights <= size)
    rows, first = np.arange(n), fits.argmax(axis=1)
    expected_width = np.where(fits.any(axis=1), widths[rows, first], size)
    expected_height = np.where(fits.any(axis=1), heights[rows, first], size)
    for got, expected in (
        (width, expected_width),
        (height, expected_height),
        (width * height, expected_width * expected_height),
        (width / height, expected_width / expected_height),
    ):
        quantiles = np.linspace(0.02, 0.98, 9)
        spread = np.quantile(expected, 0.98) - np.quantile(expected, 0.02)
        np.testing.assert_allclose(np.quantile(got, quantiles), np.quantile(expected, quantiles), atol=0.03 * spread)
    # Wherever there is room, every place is as likely: the mean of a uniform draw.
    for start, length in ((top, height), (left, width)):
        room = size - length
        assert np.mean(start[room > 0] / room[room > 0]) == pytest.approx(0.5, abs=0.01)
        assert np.any(start == room)
        assert np.any(start == 0)


def test_an_image_into_which_no_box_fits_stays_whole():
    images = pictures(5, 8, 32)
    np.testing.assert_allclose(augment.random_resized_crop(images, KEY), images, rtol=0, atol=1e-6)


def test_the_whole_area_at_the_images_aspect_is_the_image():
    images = pictures(4, 6, 12)
    cropped = augment.random_resized_crop(images, KEY, area=(1.0, 1.0), aspect=(2.0, 2.0))
    np.testing.assert_allclose(cropped, images, rtol=0, atol=1e-6)


def test_crops_stay_within_the_values_of_the_image():
    images = pictures(16, 12, 12)
    cropped = augment.random_resized_crop(images, KEY, area=(0.1, 0.5))
    assert np.all(cropped.min(axis=(1, 2)) >= images.min(axis=(1, 2)) - 1e-6)
    assert np.all(cropped.max(axis=(1, 2)) <= images.max(axis=(1, 2)) + 1e-6)


def share(chosen):
    """The mean of booleans, and five standard deviations of such a share at most."""
    return chosen.mean(), 5 * np.sqrt(0.25 / chosen.size)


def test_half_of_the_images_are_mirrored():
    images = pictures(2000, 2, 5, 1)
    flipped = np.asarray(augment.random_flip(images, KEY))
    mirrored = np.all(flipped == images[:, :, ::-1], axis=(1, 2, 3))
    untouched = np.all(flipped == images, axis=(1, 2, 3))
    assert np.all(mirrored ^ untouched)
    mean, tolerance = share(mirrored)
    assert mean == pytest.approx(0.5, abs=tolerance)


@pytest.mark.parametrize("probability", [0.0, 0.2, 1.0])
def test_a_share_of_the_images_loses_its_color(probability):
    images = pictures(2000, 2, 3)
    got = np.asarray(augment.random_grayscale(images, KEY, probability))
    # Torchvision's rgb_to_grayscale.
    luma = 0.2989 * images[..., 0] + 0.587 * images[..., 1] + 0.114 * images[..., 2]
    gray = np.all(np.abs(got - luma[..., None]) < 1e-6, axis=(1, 2, 3))
    untouched = np.all(got == images, axis=(1, 2, 3))
    assert np.all(gray ^ untouched)
    mean, tolerance = share(gray)
    assert mean == pytest.approx(probability, abs=tolerance if 0 < probability < 1 else 0)


class Variants(chex.TestCase):
    """Compiled and not: the same draws, the same images; another key, others."""

    @chex.variants(with_jit=True, without_jit=True)
    def test_draws_follow_the_key(self):
        images = pictures(6)
        for function in (augment.random_flip, augment.random_grayscale, augment.random_resized_crop):
            apply = self.variant(function)
            got = apply(images, KEY)
            assert got.shape == images.shape
            assert got.dtype == jnp.float32
            np.testing.assert_allclose(got, function(images, KEY), rtol=0, atol=1e-6)
            assert not np.allclose(got, apply(images, jax.random.key(1)))


def test_float64_and_one_image():
    with jax.enable_x64(True):
        images = pictures(1, 7, 9).astype(np.float64)
        for function in (augment.random_flip, augment.random_grayscale, augment.random_resized_crop):
            got = function(images, KEY)
            assert got.shape == images.shape
            assert got.dtype == jnp.float64


@pytest.mark.parametrize("function", [augment.random_flip, augment.random_grayscale, augment.random_resized_crop])
def test_a_single_image_without_a_batch_is_refused(function):
    with pytest.raises(AssertionError):
        function(pictures(1)[0], KEY)


def test_gray_images_have_no_color_to_lose():
    with pytest.raises(AssertionError):
        augment.random_grayscale(pictures(2, channels=1), KEY)


def test_a_shifted_image_is_a_window_of_the_padded_one():
    images, padding = pictures(300, 5, 6), 2
    around = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    windows = {(i, j): around[:, i : i + 5, j : j + 6] for i in range(5) for j in range(5)}
    got = np.asarray(augment.random_crop(images, KEY, padding))
    found = [[place for place, window in windows.items() if (window[n] == got[n]).all()] for n in range(300)]
    assert all(len(places) == 1 for places in found)
    counts = np.array([sum(places == [place] for places in found) for place in windows])
    assert counts.sum() == 300
    assert counts.min() > 0  # every place: 12 images each are expected
    assert counts.max() < 30


def test_an_image_that_may_not_be_shifted_stays():
    images = pictures(4)
    np.testing.assert_array_equal(augment.random_crop(images, KEY, 0), images)
