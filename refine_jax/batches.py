"""A function of images on the device, applied to many images on the host in few shapes."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

# Pixels a batch: large enough to keep a device busy, small enough for the intermediate arrays of a CPU.
_PIXELS = 2**20


def map_batches(
    function: Callable[..., jax.Array],
    images: np.ndarray,
    shared: tuple[Any, ...] = (),
    per_image: np.ndarray | None = None,
    size: int | None = None,
) -> np.ndarray:
    """Applies a jitted function to images, batch by batch.

    Batches are padded to powers of two, or to the size that is given, so that whatever numbers of images come, few
    shapes are compiled.

    Args:
        function: (images [B, H, W, C], *shared) -> [B, ...], or with `per_image` [B] as the second argument.
        images: [N, H, W, C]
        shared: Arguments that are the same for all images.
        per_image: Something about each image. [N]
        size: Images of a batch; None: as many as there are, up to a number that is good for work on pixels.

    Returns:
        [N, ...]
    """
    if size is None:
        largest = max(1, _PIXELS // (images.shape[1] * images.shape[2]))
        size = min(1 << (len(images) - 1).bit_length() if len(images) else 1, 1 << (largest.bit_length() - 1))
    outputs = []
    for start in range(0, max(len(images), 1), size):
        batched = [images[start : start + size]]
        if per_image is not None:
            batched.append(per_image[start : start + size])
        count = len(batched[0])
        padded = [np.concatenate([part, np.zeros((size - count, *part.shape[1:]), part.dtype)]) for part in batched]
        outputs.append(np.asarray(function(*padded, *shared))[:count])
    return np.concatenate(outputs)
