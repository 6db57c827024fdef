"""Single pictures of ImageNet: what is wrong with some files, and how one becomes 224 x 224."""

import io

import numpy as np

from refine_jax.datasets.pictures import middle, open_picture, resize, to_rgb

SIZE = 224
SHORT_SIDE = 256
QUALITY = 95  # of what has to be encoded again


def repair(encoded: bytes, short_side: int | None) -> tuple[bytes, str]:
    """Returns a picture as an RGB JPEG; the very same bytes where it is one already and not too large.

    Args:
        encoded: Contents of a file.
        short_side: A picture whose short side is longer is resized to it (bilinear, antialiased); None: never.

    Returns:
        (JPEG, what was wrong with the file; "" where nothing was, resizing not being told).

    Raises:
        UnreadableError: It cannot be decoded as a whole, or is gray with more than 8 bits; why.
    """
    image = open_picture(encoded)
    wrong = []
    if image.format not in ("JPEG", "MPO"):  # a JPEG with further pictures behind it is one for our purposes
        wrong.append(f"{image.format} in place of JPEG")
    if image.mode != "RGB":
        wrong.append({"CMYK": "CMYK", "L": "grayscale"}.get(image.mode, f"mode {image.mode}"))
    if not wrong and (short_side is None or min(image.size) <= short_side):
        return encoded, ""
    image = to_rgb(image)
    if short_side is not None and min(image.size) > short_side:
        image = resize(image, short_side)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return file.getvalue(), ", ".join(wrong)


def crop(encoded: bytes, size: int = SIZE) -> np.ndarray:
    """Returns the middle of a picture: short side to 256, then the central 224 x 224; or both in proportion.

    A picture that is 224 x 224 already is a middle: it stays as it is, or is resized as a whole.

    Args:
        encoded: A JPEG or another format that Pillow reads.
        size: Side of the middle.

    Returns:
        RGB, uint8. [size, size, 3]

    Raises:
        UnreadableError: As in `repair`.

    References:
        torchvision's Resize(256) and CenterCrop(224), the usual evaluation on ImageNet.
    """
    image = to_rgb(open_picture(encoded))
    if image.size == (SIZE, SIZE):
        image = resize(image, size)
    else:
        image = middle(resize(image, SHORT_SIDE * size // SIZE), size)
    return np.asarray(image)
