"""Single pictures of ImageNet: what is wrong with some files, and how one becomes 224 x 224."""

import io

import numpy as np
from PIL import Image

SIZE = 224
SHORT_SIDE = 256
QUALITY = 95  # of what has to be encoded again
# What Pillow raises for files that are damaged, cut off, or no pictures; the last for a size that cannot be meant.
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


class UnreadableError(Exception):
    """A file that is no picture, or a damaged one."""


def repair(encoded: bytes, short_side: int | None) -> tuple[bytes, str]:
    """Returns a picture as an RGB JPEG; the very same bytes where it is one already and not too large.

    Args:
        encoded: Contents of a file.
        short_side: A picture whose short side is longer is resized to it (bilinear, antialiased); None: never.

    Returns:
        (JPEG, what was wrong with the file; "" where nothing was, resizing not being told).

    Raises:
        UnreadableError: It cannot be decoded as a whole; why.
    """
    image = _open(encoded)
    wrong = []
    if image.format not in ("JPEG", "MPO"):  # a JPEG with further pictures behind it is one for our purposes
        wrong.append(f"{image.format} in place of JPEG")
    if image.mode != "RGB":
        wrong.append({"CMYK": "CMYK", "L": "grayscale"}.get(image.mode, f"mode {image.mode}"))
    if not wrong and (short_side is None or min(image.size) <= short_side):
        return encoded, ""
    image = image.convert("RGB")
    if short_side is not None and min(image.size) > short_side:
        image = resize(image, short_side)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return file.getvalue(), ", ".join(wrong)


def crop(encoded: bytes) -> np.ndarray:
    """Returns the middle of a picture: short side to 256, then the central 224 x 224.

    A picture that is 224 x 224 already stays as it is.

    Args:
        encoded: A JPEG or another format that Pillow reads.

    Returns:
        RGB, uint8. [224, 224, 3]

    Raises:
        UnreadableError: It cannot be decoded as a whole; why.

    References:
        torchvision's Resize(256) and CenterCrop(224), the usual evaluation on ImageNet.
    """
    image = _open(encoded).convert("RGB")
    if image.size != (SIZE, SIZE):
        image = resize(image, SHORT_SIDE)
        left, top = (round((side - SIZE) / 2) for side in image.size)
        image = image.crop((left, top, left + SIZE, top + SIZE))
    return np.asarray(image)


def resize(image: Image.Image, short_side: int) -> Image.Image:
    """Returns the image with its short side of the given length; the other is rounded down."""
    if min(image.size) == short_side:
        return image
    width, height = (short_side * side // min(image.size) for side in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR)


def _open(encoded: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(encoded))
        image.load()  # all of it: a file that was cut off opens well
    except _UNREADABLE as error:
        raise UnreadableError(str(error) or type(error).__name__) from error
    return image
