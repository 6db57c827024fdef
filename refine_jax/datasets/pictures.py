"""Single picture files, decoded within bounds: they may come from strangers."""

import io

import numpy as np
from PIL import Image

# Pillow knows many more; some run other programs, and no data set is made of them.
FORMATS = ("JPEG", "PNG", "BMP", "PPM", "WEBP")
MAX_PIXELS = 1 << 26
# Pillow makes nonsense of these when it turns them into 8 bits a channel.
_DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


class UnreadableError(Exception):
    """A file that is no picture, a damaged one, or one beyond the bounds."""


def open_picture(encoded: bytes) -> Image.Image:
    """Returns a picture, decoded as a whole.

    Args:
        encoded: Contents of a file, one of `FORMATS`; what its name says does not count.

    Raises:
        UnreadableError: It cannot be decoded, or has more than `MAX_PIXELS`, said by its header before it is
            decoded; why.
    """
    try:
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise UnreadableError(f"{width} x {height} pixels, more than {MAX_PIXELS}")
        image.load()  # all of it: a file that was cut off opens well
    except UnreadableError:
        raise
    except Exception as error:  # what Pillow raises for a file made to harm is anyone's guess
        # Pillow's own sentence for an unknown file shows where in memory the bytes lie.
        unknown = isinstance(error, Image.UnidentifiedImageError)
        reason = f"none of {', '.join(FORMATS)}" if unknown else str(error) or type(error).__name__
        raise UnreadableError(reason) from error
    return image


def decode(encoded: bytes, side: int | None = None) -> tuple[np.ndarray, str]:
    """Returns a picture as an array.

    Args:
        encoded: As `open_picture` takes it.
        side: The picture is resized until its short side is as long (bilinear, antialiased), and its middle is taken;
            None: it stays as it is.

    Returns:
        (RGB uint8 [H, W, 3], its format).

    Raises:
        UnreadableError: As in `open_picture`; or it has more than 8 bits a channel.
    """
    image = open_picture(encoded)
    format_name, image = str(image.format), to_rgb(image)
    return np.asarray(image if side is None else middle(resize(image, side), side)), format_name


def to_rgb(image: Image.Image) -> Image.Image:
    """Returns the image in RGB, 8 bits a channel.

    Raises:
        UnreadableError: It has more.
    """
    if image.mode in _DEEP_MODES:
        raise UnreadableError(f"mode {image.mode}, more than 8 bits a channel")
    return image.convert("RGB")


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
