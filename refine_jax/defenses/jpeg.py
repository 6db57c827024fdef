"""JPEG: each image is compressed and decompressed, which loses what is faint and finely structured.

The round trip is that of libjpeg as Pillow calls it, in its integers, and gives the same images bit for bit: 4:2:0,
"slow" transforms, "fancy" upsampling, all of which are the defaults. It is written anew for the device because a
callback to Pillow from a compiled function hangs where JAX has a single thread, and could not be exported. Only what
loses something is done: Huffman coding is not.

References:
    Guo et al., "Countering Adversarial Images using Input Transformations", ICLR 2018, section 4, quality 75;
    ITU-T T.81; libjpeg's jccolor.c, jcsample.c, jfdctint.c, jidctint.c, jdsample.c, jdcolor.c.
"""

import io
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from refine_jax.classifier import Classifier
from refine_jax.defenses import transformation
from refine_jax.defenses.transformation import Transformed
from refine_jax.errors import SettingError

DEFAULTS = {
    "quality": 75,  # libjpeg's, 1 to 100
    "sweep": tuple,  # of qualities; open: `strengths`
}
NEEDS = transformation.NEEDS
STRENGTH = "quality"

# The transform of eight samples, in units of 2**-13: left half of each row, of which the right mirrors it. The last
# digits are those of the reference's butterflies.
_COSINES = (
    (8192, 8192, 8192, 8192),
    (11363, 9633, 6437, 2260),
    (10703, 4433, -4433, -10703),
    (9633, -2259, -11362, -6436),
    (8192, -8192, -8192, 8192),
    (6437, -11362, 2261, 9633),
    (4433, -10704, 10704, -4433),
    (2260, -6436, 9633, -11363),
)


def strengths(image_size: tuple[int, int]) -> tuple[int, ...]:
    """Returns qualities from poor to good, for images of any size."""
    return (10, 25, 50, 75, 90)


def check(prefix: str, settings: Mapping[str, Any], num_images: int, image_size: tuple[int, int]) -> None:
    """Refuses a quality that is none; arguments as in `registry`.

    Raises:
        SettingError: `quality` is impossible.
    """
    if not 1 <= settings["quality"] <= 100:
        raise SettingError(f"{prefix}.quality", settings["quality"], "1 to 100")


def round_trip(images: jax.Array, luma: jax.Array, chroma: jax.Array) -> jax.Array:
    """Compresses and decompresses images.

    Args:
        images: Float in [0, 1], RGB, multiples of 1/255 or rounded to them. [N, H, W, 3]
        luma: Quantization table, from `quantization_tables`. int32 [8, 8]
        chroma: Likewise.

    Returns:
        Of the same shape.
    """
    pixels = jnp.round(images * 255).astype(jnp.int32)
    height, width = pixels.shape[1:3]
    y, cb, cr = _to_ycc(pixels)
    y = _quantize(y, luma)
    colors = _quantize(_halve(jnp.stack([cb, cr])), chroma)[..., : -(-height // 2), : -(-width // 2)]
    cb, cr = _double(colors)[..., :height, :width]
    return _to_rgb(y[..., :height, :width], cb, cr).astype(images.dtype) / 255


def quantization_tables(quality: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns libjpeg's tables for luma and chroma at a quality.  int32 [8, 8] each"""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG", quality=quality)
    tables = Image.open(file).quantization  # type: ignore[attr-defined]
    luma, chroma = (np.asarray(tables[i], np.int32).reshape(8, 8) for i in (0, 1))
    return luma, chroma


def _to_ycc(pixels: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """RGB to Y, Cb and Cr, 0 to 255, with 16 bits behind the point.  [N, H, W, 3] -> three times [N, H, W]"""
    r, g, b = (pixels[..., i] for i in range(3))
    half, offset = 1 << 15, (128 << 16) + (1 << 15) - 1
    y = (19595 * r + 38470 * g + 7471 * b + half) >> 16
    cb = (-11059 * r - 21709 * g + 32768 * b + offset) >> 16
    cr = (32768 * r - 27439 * g - 5329 * b + offset) >> 16
    return y, cb, cr


def _to_rgb(y: jax.Array, cb: jax.Array, cr: jax.Array) -> jax.Array:
    """The way back.  Three times [N, H, W] -> [N, H, W, 3]"""
    cb, cr, half = cb - 128, cr - 128, 1 << 15
    r = y + ((91881 * cr + half) >> 16)
    g = y + ((-22554 * cb - 46802 * cr + half) >> 16)
    b = y + ((116130 * cb + half) >> 16)
    return jnp.clip(jnp.stack([r, g, b], axis=-1), 0, 255)


def _halve(planes: jax.Array) -> jax.Array:
    """Takes the mean of 2 x 2 samples each; to the right, whole blocks of 8 come out.  [..., H, W] -> [..., h, w]"""
    height, width = planes.shape[-2:]
    planes = _repeat_edge(planes, -height % 2, -width % 16)
    sums = planes[..., 0::2, :] + planes[..., 1::2, :]
    sums = sums[..., 0::2] + sums[..., 1::2]
    # Halves are rounded down and up by turns.
    return (sums + 1 + jnp.arange(sums.shape[-1]) % 2) >> 2


def _double(planes: jax.Array) -> jax.Array:
    """Enlarges planes, samples weighted 3 to 1 by nearness along both axes.  [..., h, w] -> [..., 2 h, 2 w]"""
    if planes.shape[-1] <= 2:  # too narrow for that: the reference repeats samples
        return planes.repeat(2, axis=-2).repeat(2, axis=-1)
    before, after = (_neighbor(planes, -2, step) for step in (-1, 1))
    rows = jnp.stack([3 * planes + before, 3 * planes + after], axis=-2)
    rows = rows.reshape(*planes.shape[:-2], -1, planes.shape[-1])  # [..., 2 h, w]
    left, right = (_neighbor(rows, -1, step) for step in (-1, 1))
    both = jnp.stack([(3 * rows + left + 8) >> 4, (3 * rows + right + 7) >> 4], axis=-1)
    return both.reshape(*rows.shape[:-1], -1)


def _neighbor(planes: jax.Array, axis: int, step: int) -> jax.Array:
    """The sample before (-1) or after (1) each along an axis; at the edge the sample itself."""
    count = planes.shape[axis]
    return planes.take(jnp.clip(jnp.arange(count) + step, 0, count - 1), axis=axis)


def _quantize(planes: jax.Array, table: jax.Array) -> jax.Array:
    """What quantized coefficients of blocks of 8 x 8 give back.  [..., H, W] -> the same up to whole blocks"""
    half = jnp.asarray(_COSINES, jnp.int32)
    mirrored = half[:, ::-1] * jnp.array([1, -1] * 4)[:, None]
    transform = jnp.concatenate([half, mirrored], axis=1)  # [8, 8]
    planes = _repeat_edge(planes, -planes.shape[-2] % 8, -planes.shape[-1] % 8) - 128
    *others, height, width = planes.shape
    blocks = planes.reshape(*others, height // 8, 8, width // 8, 8)
    # Between and after the passes, rounded numbers with 2 bits behind the point; the outcome is 8 times too large.
    coefficients = _descale(jnp.einsum("kx,...iyjx->...iyjk", transform, blocks), 11)
    coefficients = _descale(jnp.einsum("ky,...iyjl->...ikjl", transform, coefficients), 15)
    steps = 8 * table[:, None, :]
    quantized = jnp.sign(coefficients) * ((jnp.abs(coefficients) + steps // 2) // steps)
    coefficients = quantized * table[:, None, :]
    blocks = _descale(jnp.einsum("ky,...ikjl->...iyjl", transform, coefficients), 11)
    blocks = _descale(jnp.einsum("lx,...iyjl->...iyjx", transform, blocks), 18)
    return jnp.clip(blocks.reshape(planes.shape) + 128, 0, 255)


def _descale(numbers: jax.Array, bits: int) -> jax.Array:
    """Divides by 2**bits, half rounded up."""
    return (numbers + (1 << (bits - 1))) >> bits


def _repeat_edge(planes: jax.Array, below: int, right: int) -> jax.Array:
    padding = [(0, 0)] * (planes.ndim - 2) + [(0, below), (0, right)]
    return jnp.pad(planes, padding, mode="edge")


def load(
    checkpoints: pathlib.Path | None, classifier: Classifier, settings: Mapping[str, Any], image_size: tuple[int, int]
) -> Transformed:
    """Returns the defended classifier; of checkpoints there are none. Arguments as in `registry`."""
    luma, chroma = map(jnp.asarray, quantization_tables(settings["quality"]))
    return Transformed(classifier, {"luma": luma, "chroma": chroma}, {}, round_trip, image_size)


fit = transformation.fit_nothing(load)
