"""Image operations against Pillow, PyTorch and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from PIL import Image

from refine_jax.attacks import warp


def random_images(rng, size, count=3):
    return rng.integers(0, 256, (count, *size, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(16, 16), (28, 28), (33, 47), (224, 224)])
@pytest.mark.parametrize("angle", [0.0, 16.0, -7.3, 45.0, 90.0, 180.0, 271.5, 359.0])
def test_rotation_is_pillows(size, angle):
    images = random_images(np.random.default_rng(1), size, count=2)
    expected = np.stack([np.asarray(Image.fromarray(image).rotate(angle)) for image in images])
    rotated = warp.take_pixels(jnp.asarray(images), jnp.asarray(warp.rotation_source(size, angle)))
    np.testing.assert_array_equal(rotated, expected)


@pytest.mark.parametrize(("points", "size"), [((4, 4), (32, 32)), ((2, 2), (16, 16)), ((5, 9), (28, 64))])
def test_bicubic_upsampling_is_pytorchs(points, size):
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(2).normal(size=(1, 2, *points))
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(values), size=size, mode="bicubic", align_corners=True
    ).numpy()
    np.testing.assert_allclose(warp.upsample_bicubic(values, size), expected, atol=1e-12)


def test_grid_sampling_is_pytorchs_inside_and_outside():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    images, grids = rng.random((3, 20, 28, 3)), rng.uniform(-1.4, 1.4, (3, 17, 23, 2))
    expected = torch.nn.functional.grid_sample(
        torch.from_numpy(images.transpose(0, 3, 1, 2)), torch.from_numpy(grids), align_corners=True
    )
    expected = expected.numpy().transpose(0, 2, 3, 1)
    with jax.enable_x64(True):
        sampled = jax.jit(warp.grid_sample)(jnp.asarray(images), jnp.asarray(grids))
        assert sampled.dtype == jnp.float64
        np.testing.assert_allclose(sampled, expected, atol=1e-12)
    single = warp.grid_sample(jnp.asarray(images, jnp.float32), jnp.asarray(grids, jnp.float32))
    np.testing.assert_allclose(single, expected, atol=2e-5)


def test_one_grid_for_all_images_samples_as_scipy_does():
    rng = np.random.default_rng(4)
    images, grid = rng.random((2, 16, 24, 3)), rng.uniform(-1.2, 1.2, (16, 24, 2))
    rows, columns = (grid[..., 1] + 1) / 2 * 15, (grid[..., 0] + 1) / 2 * 23
    expected = np.stack(
        [
            [
                scipy.ndimage.map_coordinates(image[..., c], [rows, columns], order=1, mode="grid-constant")
                for c in range(3)
            ]
            for image in images
        ]
    )
    sampled = warp.grid_sample(jnp.asarray(images, jnp.float32), jnp.asarray(grid))
    np.testing.assert_allclose(sampled, expected.transpose(0, 2, 3, 1), atol=2e-5)


def test_identity_grid_changes_nothing():
    images = np.random.default_rng(5).random((2, 16, 40, 3), dtype=np.float32)
    sampled = warp.grid_sample(jnp.asarray(images), jnp.asarray(warp.identity_grid((16, 40))))
    np.testing.assert_allclose(sampled, images, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "angle", "shift", "scale"),
    [((32, 32), 10.0, (0, 0), 1.0), ((28, 40), -8.0, (3, -2), 0.85), ((64, 64), 77.0, (-5, 9), 1.3)],
)
def test_affine_is_scipys(size, angle, shift, scale):
    height, width = size
    radians = np.deg2rad(angle)
    cosine, sine = np.cos(radians), np.sin(radians)
    # SciPy's axes are (row, column).
    matrix = np.array([[cosine, -sine], [sine, cosine]]) / scale
    center = np.array([(height - 1) / 2, (width - 1) / 2])
    offset = center - matrix @ (center + np.array(shift[::-1]))
    image = np.arange(1, height * width + 1, dtype=np.float64).reshape(size)
    expected = scipy.ndimage.affine_transform(image, matrix, offset, order=0, mode="grid-constant").astype(int) - 1
    source = np.asarray(jax.jit(warp.affine_source, static_argnums=0)(size, angle, shift, scale))
    # Half-way between two pixels, float32 may choose the other one.
    assert (source == expected).mean() > 0.998
    assert 0.2 < (source >= 0).mean() <= 1


def test_take_pixels_with_a_source_for_each_image_fills_with_black():
    images = random_images(np.random.default_rng(6), (4, 5), count=2)
    source = np.stack([np.full((2, 3), -1), np.arange(6).reshape(2, 3)]).astype(np.int32)
    taken = np.asarray(warp.take_pixels(jnp.asarray(images), jnp.asarray(source)))
    assert not taken[0].any()
    np.testing.assert_array_equal(taken[1], images[1].reshape(20, 3)[:6].reshape(2, 3, 3))


def test_brightness_is_cut_off_at_white():
    images = jnp.array([0.0, 0.4, 0.8]).reshape(1, 1, 3, 1).repeat(2, axis=0)
    adjusted = warp.adjust_brightness(images, jnp.array([1.5, 0.5]))
    np.testing.assert_allclose(np.squeeze(adjusted), [[0, 0.6, 1.0], [0, 0.2, 0.4]], rtol=1e-6)


def test_random_affine_stays_within_its_bounds_and_uses_them():
    size, count = 65, 400
    # Each pixel says where it comes from, counted from the center.
    x, y = np.meshgrid(np.arange(size) - 32.0, np.arange(size) - 32.0)
    images = jnp.asarray(np.broadcast_to(np.stack([x, y, np.ones_like(x)], -1), (count, size, size, 3)), jnp.float32)
    moved = np.asarray(warp.random_affine(images, jax.random.key(0), 10.0, 0.1, (0.8, 0.9)))
    # Two places at the same height, 20 apart: what lies between their sources is angle and scale.
    left, right = moved[:, 32, 22], moved[:, 32, 42]
    assert (left[:, 2] == 1).all()
    assert (right[:, 2] == 1).all()
    between = right - left
    angles = np.rad2deg(np.arctan2(-between[:, 1], between[:, 0]))
    scales = 20 / np.hypot(between[:, 0], between[:, 1])
    assert -12 < angles.min() < -8
    assert 8 < angles.max() < 12
    assert 0.75 < scales.min() < 0.82
    assert 0.88 < scales.max() < 0.95
    middle = moved[:, 32, 32, :2]
    assert 5 < np.abs(middle).max() <= 6.5 / 0.8 * 1.3
    np.testing.assert_allclose(middle.mean(axis=0), 0, atol=0.8)


def test_random_brightness_is_uniform_within_its_width():
    images = jnp.full((500, 1, 1, 3), 0.5)
    factors = np.asarray(warp.random_brightness(images, jax.random.key(1), 0.1))[:, 0, 0, 0] / 0.5
    assert 0.9 <= factors.min() < 0.91
    assert 1.09 < factors.max() <= 1.1 + 1e-6
