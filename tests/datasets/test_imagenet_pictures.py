import io

import numpy as np
import pytest
from PIL import Image

from refine_jax.datasets import imagenet_pictures, pictures
from tests.datasets import imagenet


def opened(encoded):
    return Image.open(io.BytesIO(encoded))


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def test_an_rgb_jpeg_that_is_small_enough_stays_byte_for_byte():
    encoded = imagenet.picture("one", (300, 256))
    assert imagenet_pictures.repair(encoded, 256) == (encoded, "")
    assert imagenet_pictures.repair(encoded, None) == (encoded, "")


@pytest.mark.parametrize(
    ("make", "wrong"), [(imagenet.cmyk, "CMYK"), (imagenet.png, "PNG in place of JPEG")], ids=["CMYK", "PNG"]
)
def test_files_that_are_no_rgb_jpegs_become_ones_of_the_same_color(make, wrong):
    encoded, what = imagenet_pictures.repair(make("one"), 256)
    assert what == wrong
    image = opened(encoded)
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (40, 30))
    assert np.abs(np.asarray(image) - np.array(imagenet.color("one"), np.float32)).max() < 4


@pytest.mark.parametrize(
    ("mode", "wrong"),
    [("L", "PNG in place of JPEG, grayscale"), ("P", "PNG in place of JPEG, mode P"), ("RGBA", ".*, mode RGBA")],
)
def test_other_modes_are_named_and_converted(mode, wrong):
    gray = Image.new("L", (40, 30), 77).convert(mode)
    encoded, what = imagenet_pictures.repair(imagenet.encode(gray, "PNG"), 256)
    assert what.endswith(wrong.removeprefix(".*"))
    assert opened(encoded).mode == "RGB"
    assert np.abs(np.asarray(opened(encoded)).astype(int) - 77).max() < 4


def test_a_grayscale_jpeg_gets_three_channels():
    encoded, what = imagenet_pictures.repair(imagenet.encode(Image.new("L", (40, 30), 77)), None)
    assert what == "grayscale"
    assert opened(encoded).mode == "RGB"


BROKEN = {
    "cut off": lambda encoded: encoded[: len(encoded) // 2],
    "empty": lambda encoded: b"",
    "no picture": lambda encoded: b"<html>not found</html>",
    "gray of 16 bits": lambda encoded: imagenet.encode(
        Image.fromarray(noise(30, 40)[..., 0].astype(np.uint16)), "PNG"
    ),
    "a broken PNG": lambda encoded: imagenet.encode(Image.fromarray(noise(30, 40)), "PNG")[:200],
}


@pytest.mark.parametrize("broken", BROKEN)
def test_what_cannot_be_decoded_is_refused(broken):
    encoded = BROKEN[broken](imagenet.encode(Image.fromarray(noise(30, 40))))
    for use in (lambda: imagenet_pictures.repair(encoded, 256), lambda: imagenet_pictures.crop(encoded)):
        with pytest.raises(pictures.UnreadableError) as caught:
            use()
        assert str(caught.value)


@pytest.mark.parametrize(("size", "resized"), [((600, 300), (512, 256)), ((301, 512), (256, 435)), ((300, 200), None)])
def test_the_short_side_is_brought_down_to_256_and_never_up(size, resized):
    encoded, what = imagenet_pictures.repair(imagenet.picture("one", size), 256)
    assert what == ""
    assert opened(encoded).size == (resized or size)


@pytest.mark.parametrize(
    ("height", "width", "top", "left"), [(256, 256, 16, 16), (256, 301, 16, 38), (400, 256, 88, 16)]
)
def test_the_middle_is_cut_out(height, width, top, left):
    pixels = noise(height, width)
    middle = imagenet_pictures.crop(imagenet.encode(Image.fromarray(pixels), "PNG"))
    np.testing.assert_array_equal(middle, pixels[top : top + 224, left : left + 224])


def test_what_is_224_already_stays_as_it_is():
    pixels = noise(224, 224)
    np.testing.assert_array_equal(imagenet_pictures.crop(imagenet.encode(Image.fromarray(pixels), "PNG")), pixels)


@pytest.mark.parametrize("size", [(40, 30), (224, 225), (1000, 300), (31, 500)])
def test_every_size_becomes_224(size):
    assert imagenet_pictures.crop(imagenet.picture("one", size)).shape == (224, 224, 3)


def test_smaller_middles_are_those_of_pictures_resized_in_proportion():
    ramp = np.linspace(0, 255, 512).astype(np.uint8)
    pixels = np.broadcast_to(ramp[:, None, None], (512, 600, 3))
    small, large = (
        imagenet_pictures.crop(imagenet.encode(Image.fromarray(pixels), "PNG"), size) for size in (112, 224)
    )
    assert small.shape == (112, 112, 3)
    # The same rows of the picture, each now as high as two.
    assert np.abs(small[:, 0, 0] - large[:, 0, 0].reshape(-1, 2).mean(axis=1)).max() <= 1


def test_a_middle_already_is_resized_as_a_whole():
    pixels = np.zeros((224, 224, 3), np.uint8)
    pixels[:, :8] = 255
    small = imagenet_pictures.crop(imagenet.encode(Image.fromarray(pixels), "PNG"), 112)
    assert small[:, :3].min() == 255
    assert small[:, 6:].max() == 0


def test_resizing_is_antialiased():
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[::2] = 255  # one pixel wide: without antialiasing half of the picture would be black or white
    middle = imagenet_pictures.crop(imagenet.encode(Image.fromarray(stripes), "PNG"))
    assert np.abs(middle.astype(int) - 127).max() <= 33
