"""Patches, pictures and patterns that are given."""

import jax
import numpy as np
import pytest
from PIL import Image

from refine_jax import attacks
from refine_jax.attacks import patterns, pictures
from refine_jax.errors import SettingError


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 200, (5, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize(("size", "side"), [(32, 3), (224, 20), (16, 2), (28, 3), (64, 6), ((32, 224), 3), (128, 12)])
def test_side_of_the_default_patch(size, side):
    attack = attacks.build("badnets", size)
    height, width = attack.image_size
    triggered = attack.trigger(np.zeros((1, height, width, 3), np.uint8))[0]
    assert (triggered[-side:, -side:] == 255).all()
    assert triggered.astype(int).sum() == 255 * 3 * side * side


def test_a_small_pattern_lies_at_the_lower_right(images):
    pattern = np.random.default_rng(1).integers(0, 256, (4, 7, 3), dtype=np.uint8)
    triggered = attacks.build("badnets", 32, pattern=pattern).trigger(images)
    expected = images.copy()
    expected[:, -4:, -7:] = pattern
    np.testing.assert_array_equal(triggered, expected)


@pytest.mark.parametrize("weight", [0.3, 0.77, 1.0])
def test_a_number_as_weight_truncates_as_the_formula_does(images, weight):
    pattern = np.random.default_rng(2).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    triggered = attacks.build("physical", 32, pattern=pattern, weight=weight).trigger(images)
    factor = np.float32(weight)
    mixed = (np.float32(1) - factor) * images[:, -6:, -6:].astype(np.float32) + factor * pattern.astype(np.float32)
    np.testing.assert_array_equal(triggered[:, -6:, -6:], mixed.astype(np.uint8))
    np.testing.assert_array_equal(triggered[:, :-6], images[:, :-6])


def test_a_weight_for_each_channel(images):
    weight = np.zeros((32, 32, 3), np.float32)
    weight[:2, :2, 1] = 1
    pattern = np.full((32, 32), 250, np.uint8)
    triggered = attacks.build("badnets", 32, pattern=pattern, weight=weight).trigger(images)
    expected = images.copy()
    expected[:, :2, :2, 1] = 250
    np.testing.assert_array_equal(triggered, expected)


def test_black_pixels_of_a_pattern_of_the_images_size_are_not_a_part_of_it(images):
    pattern = np.zeros((32, 32, 3), np.uint8)
    pattern[3, 4] = (0, 0, 9)
    triggered = attacks.build("badnets", 32, pattern=pattern).trigger(images)
    expected = images.copy()
    expected[:, 3, 4] = (0, 0, 9)
    np.testing.assert_array_equal(triggered, expected)


def test_shapes_and_types_of_the_same_pattern(images):
    pattern = np.random.default_rng(3).integers(1, 256, (32, 32, 3), dtype=np.uint8)
    expected = attacks.build("blended", 32, pattern=pattern).trigger(images)
    for same in (np.moveaxis(pattern, -1, 0), pattern / 255, pattern.astype(np.int64), pattern.tolist()):
        np.testing.assert_array_equal(attacks.build("blended", 32, pattern=same).trigger(images), expected)
    gray = pattern[..., 0]
    of_gray = [attacks.build("blended", 32, pattern=p).trigger(images) for p in (gray, gray[..., None], gray[None])]
    np.testing.assert_array_equal(of_gray[0], of_gray[1])
    np.testing.assert_array_equal(of_gray[0], of_gray[2])


def test_picture_files(images, tmp_path):
    pattern = np.random.default_rng(4).integers(1, 256, (32, 32, 3), dtype=np.uint8)
    path = tmp_path / "pattern.png"
    Image.fromarray(pattern).save(path)
    for name in ("badnets", "blended"):
        from_array = attacks.build(name, 32, pattern=pattern)
        for given in (path, str(path)):
            from_file = attacks.build(name, 32, pattern=given)
            np.testing.assert_array_equal(from_file.trigger(images), from_array.trigger(images))
            assert from_file.options["pattern"] == str(path)
    # Blended takes a picture of any size; a patch does not.
    assert attacks.build("blended", (16, 24), pattern=path).arrays["pattern"].shape == (16, 24, 3)
    with pytest.raises(SettingError, match=r"attack\.badnets\.pattern = \(32, 32\): allowed: at most as large"):
        attacks.build("badnets", 16, pattern=path)
    attack = attacks.build("adaptive_patch", 32, patterns=(path,), alphas=(0.5,))
    np.testing.assert_array_equal(attack.trigger(images), np.broadcast_to(pattern, images.shape))


def test_a_file_that_is_no_picture(tmp_path):
    path = tmp_path / "pattern.png"
    path.write_text("no picture")
    with pytest.raises(SettingError, match=r"attack\.blended\.pattern = .*Pillow can read"):
        attacks.build("blended", 32, pattern=path)


def opaque():
    return np.full((32, 32, 4), 255, np.uint8)


def transparent():
    pixels = opaque()
    pixels[:-3, :, 3] = 0
    return pixels


def with_transparent_color(color):
    picture = Image.new("P", (32, 32))
    picture.putpalette([255, 0, 0, 0, 255, 0])
    picture.info["transparency"] = color
    return picture


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (Image.fromarray(transparent()), "transparent pixels; give pattern and weight as arrays"),
        (Image.fromarray(transparent()).convert("LA"), "transparent pixels"),
        (with_transparent_color(0), "transparent pixels"),
        (Image.fromarray(np.arange(1024, dtype=np.uint16).reshape(32, 32) * 60), "mode I;16, more than 8 bits"),
    ],
)
@pytest.mark.parametrize("name", ["badnets", "blended"])
def test_pictures_that_would_become_another_trigger_are_refused(tmp_path, name, picture, message):
    path = tmp_path / "pattern.png"
    picture.save(path)
    with pytest.raises(SettingError, match=rf"attack\.{name}\.pattern = .*an opaque picture of 8 bits .*{message}"):
        attacks.build(name, 32, pattern=path)


def test_an_alpha_channel_that_hides_nothing_is_fine(tmp_path):
    path = tmp_path / "pattern.png"
    for picture in (Image.fromarray(opaque()), with_transparent_color(1)):
        picture.save(path)
        shown = np.asarray(picture.convert("RGB"))
        np.testing.assert_array_equal(attacks.build("blended", 32, pattern=path).arrays["pattern"], shown)


@pytest.mark.parametrize("limit", [1023, 511])  # beyond twice Pillow's own limit it raises by itself
def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch, limit):
    path = tmp_path / "pattern.png"
    Image.new("RGB", (32, 32)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit if limit == 511 else None)
    monkeypatch.setattr("refine_jax.datasets.pictures.MAX_PIXELS", limit)
    with pytest.raises(SettingError, match=r"attack\.blended\.pattern = .*(32 x 32 pixels|Pillow can read)"):
        attacks.build("blended", 32, pattern=path)


def test_blending_rounds_half_to_even():
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=-1)
    pattern = np.full((16, 16, 3), 128, np.uint8)
    exact = (images.astype(float) * 3 + 128) / 4
    blended = patterns.blend(images, pattern, np.float32(0.25))
    # Quarters are exact in floats but for the division by 255, which moves ties by less than 1e-4.
    assert (np.abs(blended - exact) <= 0.5 + 1e-4).all()
    np.testing.assert_array_equal(patterns.blend(images, pattern, np.float32(1)), np.full_like(images, 128))


def test_pictures_are_the_same_motif_at_any_size():
    key = jax.random.key(0)
    # The center of every 7 by 7 square of a picture of 224 is the center of a pixel at 32.
    small, large = (pictures.adaptive_patches((side, side), key) for side in (32, 224))
    np.testing.assert_array_equal(large[:, 3::7, 3::7], small)
    small, large = (pictures.sunburst((side, side), key) for side in (32, 224))
    assert (large[3::7, 3::7] == small).all(axis=-1).mean() > 0.99


@pytest.mark.parametrize("size", [(16, 16), (28, 28), (32, 48), (224, 224)])
def test_patches_of_adaptive_patch_cover_the_same_share_at_any_size(size):
    drawn = pictures.adaptive_patches(size, jax.random.key(1))
    masks = drawn.any(axis=-1)
    shares = masks.mean(axis=(1, 2)) * max(size) / min(size)
    np.testing.assert_allclose(shares, [25 / 1024, 20 / 1024, np.pi * 36 / 1024, 64 / 1024], rtol=0.4)
    # The second has a part in every corner.
    height, width = size
    for rows in (slice(0, height // 4), slice(-(height // 4), None)):
        for columns in (slice(0, width // 4), slice(-(width // 4), None)):
            assert masks[1, rows, columns].any()


def test_another_seed_draws_other_pictures():
    for name, array in (("blended", "pattern"), ("adaptive_patch", "patterns"), ("wanet", "control_grid")):
        first, second = (attacks.build(name, 32, seed=seed).arrays[array] for seed in (0, 1))
        assert (first != second).any()
