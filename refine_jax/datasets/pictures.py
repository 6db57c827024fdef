"""Single picture files, decoded within bounds: they may come from strangers."""

import io
import struct
from typing import NamedTuple

import numpy as np
from PIL import Image

# Pillow knows many more; some run other programs, and no data set is made of them.
FORMATS = ("JPEG", "PNG", "BMP", "PPM", "WEBP")
MAX_PIXELS = 1 << 26
# Gray, of more than 8 bits: Pillow makes nonsense of these when it turns them into 8. Of color it takes the upper 8.
_DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_ORIENTATION = 0x0112  # the tag in EXIF data


class UnreadableError(Exception):
    """A file that is no picture, a damaged one, or one beyond the bounds."""


class Decoded(NamedTuple):
    """A picture as an array.

    Attributes:
        pixels: RGB, uint8. [H, W, 3]
        format: One of `FORMATS`, or MPO, a JPEG with further pictures behind it.
        ignored: What the file says beside, each in a sentence that many files may share.
    """

    pixels: np.ndarray
    format: str
    ignored: tuple[str, ...]


def open_picture(encoded: bytes) -> Image.Image:
    """Returns a picture, decoded as a whole.

    Args:
        encoded: Contents of a file, one of `FORMATS`; what its name says does not count.

    Raises:
        UnreadableError: It cannot be decoded, or has more than `MAX_PIXELS`, said by its header before it is
            decoded; why.
        MemoryError: There is too little memory at the moment.
    """
    try:
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise UnreadableError(f"{width} x {height} pixels, more than {MAX_PIXELS}")
        image.load()  # all of it: a file that was cut off opens well
    except (UnreadableError, MemoryError):  # the second says nothing of the file
        raise
    except Exception as error:  # what Pillow raises for a file made to harm is anyone's guess
        # Pillow's own sentence for an unknown file shows where in memory the bytes lie.
        unknown = isinstance(error, Image.UnidentifiedImageError)
        reason = f"none of {', '.join(FORMATS)}" if unknown else str(error) or type(error).__name__
        raise UnreadableError(reason) from error
    return image


def decode(encoded: bytes, side: int | None = None) -> Decoded:
    """Returns a picture as an array, as torchvision's ImageFolder reads it: neither turned nor blended.

    Args:
        encoded: As `open_picture` takes it.
        side: The picture is resized until its short side is as long (bilinear, antialiased), and its middle is taken;
            None: it stays as it is.

    Raises:
        UnreadableError: As in `open_picture` and `to_rgb`.
        MemoryError: There is too little memory at the moment.
    """
    image = open_picture(encoded)
    format_name, ignored, image = str(image.format), _ignored(image), to_rgb(image)
    return Decoded(np.asarray(image if side is None else middle(resize(image, side), side)), format_name, ignored)


def _ignored(image: Image.Image) -> tuple[str, ...]:
    """What is not looked at of a picture and would change it."""
    ignored = []
    if 2 <= _orientation(image.info.get("exif")) <= 8:
        ignored.append("taken as it is stored, though its EXIF data turn it")
    if "A" in image.getbands():
        transparent = image.getchannel("A").getextrema() != (255, 255)
    else:
        transparent = "transparency" in image.info
    if transparent:
        ignored.append("taken with the colors under what is transparent in it")
    return tuple(ignored)


def _orientation(exif: object) -> int:
    """The orientation that EXIF data give, 1 where they give none.

    It is read here, since Pillow keeps a copy of what every entry points at: thousands may point at one megabyte.
    """
    exif = exif.removeprefix(b"Exif\0\0") if isinstance(exif, bytes) else b""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", exif, entry)
            if tag == _ORIENTATION:
                return value
    except struct.error:  # they are cut off
        pass
    return 1


def to_rgb(image: Image.Image) -> Image.Image:
    """Returns the image in RGB, 8 bits a channel.

    Raises:
        UnreadableError: It is gray and has more, or cannot be converted; why.
        MemoryError: There is too little memory at the moment.
    """
    if image.mode in _DEEP_MODES:
        raise UnreadableError(f"mode {image.mode}, more than 8 bits a channel")
    try:
        return image.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:  # Pillow takes a PNG's text for its own if it is called as this is, "transparency"
        raise UnreadableError(str(error) or type(error).__name__) from error


def resize(image: Image.Image, short_side: int) -> Image.Image:
    """Returns the image with its short side of the given length; the other is rounded down."""
    if min(image.size) == short_side:
        return image
    width, height = (short_side * side // min(image.size) for side in image.size)
    if width * height > MAX_PIXELS:
        raise UnreadableError(f"{image.size[0]} x {image.size[1]} pixels, too long to be resized to {short_side}")
    return image.resize((width, height), Image.Resampling.BILINEAR)


def middle(image: Image.Image, side: int) -> Image.Image:
    """Returns the central square of an image."""
    left, top = (round((length - side) / 2) for length in image.size)
    return image.crop((left, top, left + side, top + side))
