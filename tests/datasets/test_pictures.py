"""Single picture files, and what is ignored in them."""

import io
import struct
import tracemalloc

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from refine_jax.datasets import pictures

TURNED = ("taken as it is stored, though its EXIF data turn it",)
TRANSPARENT = ("taken with the colors under what is transparent in it",)


def encode(image, file_format="PNG", **options):
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(("orientation", "ignored"), [(1, ()), (6, TURNED), (8, TURNED), (9, ()), (None, ())])
def test_a_picture_that_exif_turns_stays_as_it_is_stored_and_that_is_told(file_format, orientation, ignored):
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    if orientation is not None:
        exif[0x0112] = orientation
    decoded = pictures.decode(encode(Image.new("RGB", (16, 8)), file_format, exif=exif))
    assert decoded.pixels.shape == (8, 16, 3)
    assert (decoded.format, decoded.ignored) == (file_format, ignored)


@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_data_are_read_in_both_orders_and_to_where_they_end(order):
    start = {"<": b"II*\0", ">": b"MM\0*"}[order]
    entries = [(0x0110, 2, 4, 0), (0x0112, 3, 1, 3)]
    data = start + struct.pack(f"{order}IH", 8, 2)
    data += b"".join(struct.pack(f"{order}HHIHxx", *entry) for entry in entries)
    assert pictures._orientation(b"Exif\0\0" + data) == pictures._orientation(data) == 3
    for length in range(len(data) - 2):
        assert pictures._orientation(data[:length]) == 1


def test_exif_data_that_point_at_the_same_bytes_a_thousand_times_take_no_memory():
    entries = b"".join(struct.pack("<HHII", tag, 1, 1 << 20, 8) for tag in range(0x0200, 0x0600))
    exif = b"II*\0" + struct.pack("<IH", 8, 0x0400) + entries + bytes(1 << 20)
    encoded = encode(Image.new("RGB", (8, 8)), exif=exif)
    tracemalloc.start()
    try:
        assert pictures.decode(encoded).ignored == ()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 50 << 20  # of a gigabyte


@pytest.mark.parametrize(("alpha", "ignored"), [(255, ()), (254, TRANSPARENT), (0, TRANSPARENT)])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_has_the_color_under_it_and_that_is_told(mode, alpha, ignored):
    decoded = pictures.decode(encode(Image.new(mode, (4, 4), (200,) * (len(mode) - 1) + (alpha,))))
    assert (decoded.pixels == 200).all()
    assert decoded.ignored == ignored


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
def test_a_color_that_is_transparent_is_told():
    assert pictures.decode(encode(Image.new("P", (4, 4), 1), transparency=1)).ignored == TRANSPARENT


def test_of_color_with_16_bits_a_channel_the_upper_8_are_taken_and_of_gray_nothing():
    color = b"P6 2 2 65535\n" + np.full((2, 2, 3), 0x1234, ">u2").tobytes()
    assert (pictures.decode(color).pixels == 0x12).all()
    with pytest.raises(pictures.UnreadableError, match="more than 8 bits a channel"):
        pictures.decode(encode(Image.fromarray(np.full((2, 2), 0x1234, np.uint16))))


@pytest.mark.parametrize("mode", ["L", "P"])
def test_a_text_that_pillow_takes_for_its_own_makes_a_picture_unreadable_and_nothing_worse(mode):
    text = PngInfo()
    text.add_text("transparency", "none")
    with pytest.raises(pictures.UnreadableError):
        pictures.decode(encode(Image.new(mode, (8, 8)), pnginfo=text))


@pytest.mark.parametrize("step", ["load", "convert"])
def test_too_little_memory_is_not_the_fault_of_the_file(monkeypatch, step):
    def fail(*_, **__):
        raise MemoryError

    encoded = encode(Image.new("L", (8, 8)))
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile." + step, fail)
    with pytest.raises(MemoryError):
        pictures.decode(encoded)
