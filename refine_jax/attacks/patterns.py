"""Patterns as arrays or picture files, and the patch at the lower right that several attacks share."""

import math
import numbers
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from refine_jax.attacks.options import check_number
from refine_jax.datasets import pictures
from refine_jax.errors import SettingError

# Options of every attack with a patch.
PATCH_OPTIONS = {"pattern": str, "weight": float}


def patch_side(image_size: tuple[int, int]) -> int:
    """Returns the side of the default patch: the straight line through 3 at 32 and 20 at 224, rounded, at least 2."""
    return max(2, round(3 + (min(image_size) - 32) * 17 / 192))


def draw_patch(image_size: tuple[int, int], options: Mapping[str, Any], field: str) -> dict[str, np.ndarray]:
    """Makes pattern and weight of an attack with a patch; nothing about it is random.

    A pattern smaller than the image lies at the lower right. Without a weight, it is 1 on the whole of such a patch,
    and on the pixels of a pattern as large as the image that are not black.

    Args:
        image_size: (H, W).
        options: 'pattern' (array or path of a picture; None: a white square) and 'weight' (a number or an array of
            the pattern's or the image's size, in [0, 1]; None: as above; a number multiplies that).
        field: What the fields in errors start with.

    Returns:
        'pattern', uint8 [H, W, 3], and 'weight', float32 [H, W, 3].

    Raises:
        SettingError: The pattern is larger than the image, a picture is missing, a weight is not in [0, 1], or
            nothing of the trigger would be seen.
    """
    pattern, weight = options["pattern"], options["weight"]
    if pattern is None:
        side = patch_side(image_size)
        pattern = np.full((side, side, 3), 255, np.uint8)
    else:
        pattern = read_pattern(f"{field}.pattern", pattern, image_size)
    size = pattern.shape[:2]
    if any(side > available for side, available in zip(size, image_size, strict=True)):
        raise SettingError(f"{field}.pattern", size, f"at most as large as the image, {image_size}")
    mask = pattern.any(axis=-1, keepdims=True) if size == image_size else np.ones((*size, 1), bool)
    if weight is None or isinstance(weight, numbers.Real):
        factor = 1.0 if weight is None else check_number(f"{field}.weight", weight, 0, 1, above=True)
        weight = np.where(mask, np.float32(factor), np.float32(0))
    else:
        weight = _check_weight(f"{field}.weight", weight, (size, image_size))
    if not weight.any():
        given = "pattern" if options["weight"] is None or isinstance(options["weight"], numbers.Real) else "weight"
        raise SettingError(f"{field}.{given}", "zeros alone", "what leaves something of a trigger to be seen")
    return {"pattern": _at_lower_right(pattern, image_size), "weight": _at_lower_right(weight, image_size)}


def _check_weight(field: str, weight: Any, sizes: tuple[tuple[int, int], ...]) -> np.ndarray:
    try:
        weight = np.asarray(weight, np.float32)
    except (ValueError, TypeError) as error:
        raise SettingError(field, f"a {type(weight).__name__}", "a number, or an array of numbers") from error
    given = weight.shape
    weight = _channels_last(weight, sizes)
    if weight is None:
        raise SettingError(
            field, given, f"a number, or an array of shape {' or '.join(map(str, dict.fromkeys(sizes)))}"
        )
    if not ((weight >= 0) & (weight <= 1)).all():
        raise SettingError(field, (float(weight.min()), float(weight.max())), "from 0 to 1")
    return weight


def _at_lower_right(values: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Returns values in an otherwise black image. [H, W, 3]"""
    full = np.zeros((*image_size, 3), values.dtype)
    full[image_size[0] - values.shape[0] :, image_size[1] - values.shape[1] :] = values
    return full


def stamp(images: np.ndarray, pattern: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Returns (1 - weight) * images + weight * pattern, truncated.

    On the host, in float32: a compiler that contracts a product and a sum into one rounding changes what truncation
    makes of it, and a patch is too little work for that to pay.

    Args:
        images: uint8. [N, H, W, 3]
        pattern: uint8. [H, W, 3]
        weight: float32. [H, W, 3]

    Returns:
        uint8. [N, H, W, 3]

    Source: BadNets of BackdoorBox, as in the authors' program.
    """
    out = np.array(images)
    rows, columns = (np.flatnonzero(weight.any(axis=axes)) for axes in ((1, 2), (0, 2)))
    if not len(rows):
        return out
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    added = weight[box] * pattern[box].astype(np.float32)
    kept = np.float32(1) - weight[box]
    step = max(1, 2**22 // added.size)
    for start in range(0, len(out), step):
        part = (slice(start, start + step), *box)
        out[part] = (kept * out[part].astype(np.float32) + added).astype(np.uint8)
    return out


def read_pattern(
    field: str, value: Any, image_size: tuple[int, int], *, resize: bool = False, exact: bool = False
) -> np.ndarray:
    """Returns a pattern that was given.

    Args:
        field: Dotted name of the option, for errors.
        value: A path of a picture; or an array, integers from 0 to 255 or floats in [0, 1], of shape [h, w], [h, w, 1]
            or [h, w, 3]; channels may come first where the rest is the image's size.
        image_size: (H, W).
        resize: Whether to resize a picture that is read from a file to the image's size, bilinearly.
        exact: Whether to refuse another size than the image's.

    Returns:
        uint8. [h, w, 3]

    Raises:
        SettingError: There is no such picture, it cannot be read, or an array of another shape or range was given.
    """
    if isinstance(value, str | os.PathLike):
        picture = _open_picture(field, value)
        if resize and picture.size != image_size[::-1]:
            picture = picture.resize(image_size[::-1], Image.Resampling.BILINEAR)
        pattern = np.asarray(picture)
    else:
        try:
            values = np.asarray(value)
        except ValueError as error:  # rows of several lengths
            allowed = "a picture file, or numbers of shape [h, w] or [h, w, 3]"
            raise SettingError(field, f"a {type(value).__name__}", f"{allowed}; {error}") from error
        pattern = _check_pattern(field, values, image_size)
    if exact and pattern.shape[:2] != image_size:
        raise SettingError(field, pattern.shape[:2], f"of the image's size, {image_size}")
    return pattern


def _open_picture(field: str, path: str | os.PathLike) -> Image.Image:
    path = pathlib.Path(path).expanduser()
    try:
        with Image.open(path) as picture:
            if math.prod(picture.size) > pictures.MAX_PIXELS:
                raise pictures.UnreadableError(f"{picture.size[0]} x {picture.size[1]} pixels")
            picture.load()
            if picture.has_transparency_data and picture.convert("RGBA").getchannel("A").getextrema() != (255, 255):
                # What lies under transparent pixels is often black or white, and never what was seen.
                raise pictures.UnreadableError("it has transparent pixels; give pattern and weight as arrays instead")
            return pictures.to_rgb(picture)
    except FileNotFoundError as error:
        raise SettingError(field, str(path), "a picture file that exists") from error
    except pictures.UnreadableError as error:
        allowed = f"an opaque picture of 8 bits a channel and at most {pictures.MAX_PIXELS} pixels"
        raise SettingError(field, str(path), f"{allowed}: {error}") from error
    except Exception as error:  # what Pillow raises for a damaged file is anyone's guess
        raise SettingError(field, str(path), "a picture that Pillow can read, as a PNG") from error


def _check_pattern(field: str, values: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    if values.dtype.kind not in "uif" or values.ndim not in (2, 3):
        raise SettingError(field, _summary(values), "a picture file, or numbers of shape [h, w] or [h, w, 3]")
    top = 1 if values.dtype.kind == "f" else 255
    if values.size == 0 or not ((values >= 0) & (values <= top)).all():
        raise SettingError(field, _summary(values), "integers from 0 to 255, or floats from 0 to 1")
    if top == 1:
        values = np.rint(values * 255)
    pattern = _channels_last(values, (image_size, values.shape[:2]))
    if pattern is None:
        raise SettingError(field, _summary(values), "of shape [h, w], [h, w, 1] or [h, w, 3]")
    return np.broadcast_to(pattern.astype(np.uint8), (*pattern.shape[:2], 3))


def _channels_last(values: np.ndarray, sizes: tuple[tuple[int, int], ...]) -> np.ndarray | None:
    """Returns [h, w, 1] or [h, w, 3] of one of the sizes (h, w), or None where the array has none of them."""
    if values.ndim == 2:
        values = values[..., np.newaxis]
    for size in sizes:
        if values.shape in ((*size, 1), (*size, 3)):
            return values
        if values.shape in ((1, *size), (3, *size)):
            return np.moveaxis(values, 0, -1)
    return None


def _summary(values: np.ndarray) -> str:
    span = f" from {values.min()} to {values.max()}" if values.size and values.dtype.kind in "uif" else ""
    return f"{values.dtype} array of shape {values.shape}{span}"


def blend(images: np.ndarray, pattern: np.ndarray, weight: np.ndarray | np.float32) -> np.ndarray:
    """Returns (1 - weight) * images + weight * pattern, computed on [0, 1] and rounded half to even.

    On the host, in float32 and in this order, for the reason given at `stamp`: one in ten results of opacity 0.1 lies
    half-way between two levels.

    Args:
        images: uint8. [N, H, W, 3]
        pattern: uint8. [H, W, 3]
        weight: float32, broadcastable to the pattern.

    Returns:
        uint8. [N, H, W, 3]

    Source: Blended and AdaptivePatch of BackdoorBox, as in the authors' program, and then to uint8.
    """
    out = np.empty_like(images, subok=False)
    added = weight * (pattern.astype(np.float32) / np.float32(255))
    kept = np.float32(1) - weight
    step = max(1, math.ceil(2**22 / pattern.size))
    for start in range(0, len(out), step):
        part = slice(start, start + step)
        mixed = kept * (images[part].astype(np.float32) / np.float32(255)) + added
        out[part] = np.rint(mixed * np.float32(255)).astype(np.uint8)
    return out
