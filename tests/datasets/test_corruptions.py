"""Corruptions: by hand, by the standard library, by their statistics; the same however images are read."""

import colorsys
import pickle

import jax
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from refine_jax.datasets import corruptions
from refine_jax.datasets.corruptions import CORRUPTIONS, Corrupted
from refine_jax.errors import SettingError

KEY = jax.random.key(3)
RANDOM = ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise")


def pictures(count=3, side=32):
    """Smooth pictures with edges, such as there are."""
    noise = np.random.default_rng(0).normal(size=(count, side, side, 3))
    smooth = gaussian_filter(noise, (0, 3, 3, 0.5))
    smooth[:, :, side // 2 :] *= -1
    return (255 * (smooth - smooth.min()) / (smooth.max() - smooth.min())).astype(np.uint8)


def corrupted(name, severity, images):
    return Corrupted(images, name, severity, KEY)[:]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_gets_worse_with_severity_and_is_the_same_however_it_is_read(name):
    images = pictures()
    found = [corrupted(name, severity, images) for severity in corruptions.SEVERITIES]
    changes = [np.abs(image.astype(float) - images).mean() for image in found]
    if name == "saturate":  # twice less saturated, then three times more
        assert changes[0] < changes[1]
        changes = changes[2:]
    if name == "pixelate":  # in between, edges of the picture may fall on those of the boxes
        changes = changes[::4]
    assert changes == sorted(changes)
    assert 0 < changes[0] < changes[-1]

    lazy = Corrupted(images, name, 5, KEY)
    assert (lazy.shape, lazy.dtype, lazy.nbytes, len(lazy)) == (images.shape, np.uint8, images.nbytes, 3)
    np.testing.assert_array_equal(np.asarray(lazy), found[-1])
    np.testing.assert_array_equal(lazy[np.array([2, 0])], found[-1][[2, 0]])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(lazy))[1:], found[-1][1:])
    other = Corrupted(images, name, 5, jax.random.key(4))[:]
    assert np.array_equal(other, found[-1]) == (name not in RANDOM)
    assert np.array_equal(images, pictures())  # what it is made of stays


def test_noise_is_another_for_every_image():
    found = corrupted("gaussian_noise", 1, np.full((2, 8, 8, 3), 128, np.uint8))
    assert not np.array_equal(*found)


def test_noises_have_the_spread_that_they_say():
    gray = np.full((1, 200, 200, 3), 128, np.uint8)  # far from both ends
    value = 128 / 255
    expected = {
        "gaussian_noise": 0.09,
        "speckle_noise": 0.16 * value,
        "shot_noise": (value / 75) ** 0.5,
    }
    for name, deviation in expected.items():
        found = corrupted(name, 4, gray) / 255
        np.testing.assert_allclose(found.std(), deviation, rtol=0.02, err_msg=name)
        np.testing.assert_allclose(found.mean(), value - 0.5 / 255, atol=2e-3, err_msg=name)  # values are cut
    impulses = corrupted("impulse_noise", 4, gray)
    shares = [(impulses == level).mean() for level in (0, 255, 128)]
    np.testing.assert_allclose(shares, [0.025, 0.025, 0.95], atol=2e-3)


def test_colors_are_changed_as_the_standard_library_has_them():
    image = np.random.default_rng(0).integers(0, 256, (1, 6, 7, 3), np.uint8)
    image[0, 0, 0], image[0, 0, 1] = 90, 0  # a gray and black

    def expected(change):
        rgb = [colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*pixel))) for pixel in image.reshape(-1, 3) / 255]
        return 255 * np.reshape(rgb, image.shape)

    brighter = expected(lambda h, s, v: (h, s, min(v + 0.2, 1)))
    vivid = expected(lambda h, s, v: (h, min(2 * s + 0.1, 1), v))
    # Cut to whole values: below what the library says by less than 1, but for the last bits.
    for name, wanted in (("brightness", brighter), ("saturate", vivid)):
        error = wanted - corrupted(name, 4, image)
        assert error.min() > -1e-9, name
        assert error.max() < 1 + 1e-9, name


def test_contrast_and_pixels_by_hand():
    image = np.zeros((1, 2, 2, 3), np.uint8)
    image[0, 0] = 200  # the mean is 100, and of the distance to it 30 % are left
    assert corrupted("contrast", 4, image)[0, :, 0, 0].tolist() == [130, 70]

    image = np.zeros((1, 4, 4, 3), np.uint8)
    image[0, :2, :2, 0] = [[10, 20], [30, 40]]
    image[0, 2:, 2:, 1] = 80
    found = corrupted("pixelate", 5, image)[0]  # 65 % of 4 are 2
    assert found[..., 0].tolist() == [[25, 25, 0, 0], [25, 25, 0, 0], [0] * 4, [0] * 4]
    assert found[..., 1].tolist() == [[0] * 4, [0] * 4, [0, 0, 80, 80], [0, 0, 80, 80]]


def test_blur_of_a_point_is_the_kernel():
    image = np.zeros((1, 15, 15, 3), np.uint8)
    image[0, 7, 7, 1] = 255
    found = corrupted("gaussian_blur", 5, image)[0]
    kernel = np.exp(-0.5 * np.arange(-7, 8) ** 2)
    kernel[np.abs(np.arange(-7, 8)) > 4] = 0
    kernel /= kernel.sum()
    np.testing.assert_allclose(found[..., 1], 255 * np.outer(kernel, kernel) - 0.5, atol=0.5 + 1e-6)
    assert not found[..., [0, 2]].any()


def test_what_there_is_not_is_refused():
    with pytest.raises(SettingError, match=r"corruption = 'fogg': .*gaussian_noise.*jpeg_compression"):
        Corrupted(pictures(), "fogg", 1, KEY)
    with pytest.raises(SettingError, match=r"severity = 6: allowed: 1 to 5"):
        Corrupted(pictures(), "contrast", 6, KEY)
