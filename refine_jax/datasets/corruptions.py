"""Images as they are taken under worse conditions: common corruptions, as CIFAR-10-C defines them.

Ten of its nineteen, those that need neither OpenCV nor ImageMagick nor pictures of frost. Severities are from 1 to 5;
what they mean is in units of [0, 1] or in pixels, as for CIFAR-10-C at 32 x 32, whatever the size of the images.

References:
    Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations, ICLR
    2019; the authors' program, ImageNet-C/create_c/make_cifar_c.py. Their random numbers are others.
"""

import io
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import PIL.Image

from refine_jax.errors import SettingError, choose

SEVERITIES = (1, 2, 3, 4, 5)
NONE = "none"


class Corrupted:
    """Images of which each is corrupted when it is read; to be read as an array of images is.

    What is drawn for an image follows from the key and from its number, so that it is the same however it is read.

    Args:
        images: What is read as an array is, by a slice or by numbers. uint8 [N, H, W, 3]
        name: Key of `CORRUPTIONS`.
        severity: One of `SEVERITIES`.
        key: Of what is drawn.

    Raises:
        SettingError: There is no such corruption, or severity.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, images: Any, name: str, severity: int, key: jax.Array):
        self._function, parameters = CORRUPTIONS[choose("corruption", name, CORRUPTIONS)]
        if severity not in SEVERITIES:
            raise SettingError("severity", severity, "1 to 5")
        self._images, self._parameter = images, parameters[severity - 1]
        self._entropy = np.asarray(jax.random.key_data(key)).tolist()  # goes to another process as numbers

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, 3)."""
        return self._images.shape

    @property
    def nbytes(self) -> int:
        """Of all images."""
        return int(np.prod(self.shape, dtype=np.int64))

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, rows: Any) -> np.ndarray:
        images, numbers = np.array(self._images[rows]), np.arange(len(self))[rows]
        for place, number in enumerate(numbers):
            drawn = np.random.default_rng([*self._entropy, int(number)])
            images[place] = self._function(images[place], self._parameter, drawn)
        return images

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        del copy  # it is always one
        return np.asarray(self[:], dtype)


def _to_uint8(image: np.ndarray) -> np.ndarray:
    """Values in [0, 1] as the files of CIFAR-10-C have them: cut to whole ones, not rounded."""
    return (np.clip(image, 0, 1) * 255).astype(np.uint8)


def gaussian_noise(image: np.ndarray, deviation: float, drawn: np.random.Generator) -> np.ndarray:
    """Adds normal noise.  uint8 [H, W, 3], as of all of these"""
    return _to_uint8(image / 255 + drawn.normal(size=image.shape, scale=deviation))


def shot_noise(image: np.ndarray, photons: float, drawn: np.random.Generator) -> np.ndarray:
    """Counts photons, of which white is so many."""
    return _to_uint8(drawn.poisson(image / 255 * photons) / photons)


def impulse_noise(image: np.ndarray, share: float, drawn: np.random.Generator) -> np.ndarray:
    """Makes a share of all values 0 or 255."""
    hit, white = drawn.random(image.shape) < share, drawn.random(image.shape) < 0.5
    return np.where(hit, np.where(white, 255, 0), image).astype(np.uint8)


def speckle_noise(image: np.ndarray, deviation: float, drawn: np.random.Generator) -> np.ndarray:
    """Adds normal noise in proportion to the value."""
    x = image / 255
    return _to_uint8(x + x * drawn.normal(size=image.shape, scale=deviation))


def gaussian_blur(image: np.ndarray, sigma: float, drawn: np.random.Generator) -> np.ndarray:
    """Blurs; `sigma` is in pixels."""
    from scipy.ndimage import gaussian_filter  # takes a while to import

    del drawn
    return _to_uint8(gaussian_filter(image / 255, (sigma, sigma, 0), mode="nearest"))


def brightness(image: np.ndarray, more: float, drawn: np.random.Generator) -> np.ndarray:
    """Adds to the value of HSV."""
    del drawn
    return _in_hsv(image, 2, 1, more)


def contrast(image: np.ndarray, factor: float, drawn: np.random.Generator) -> np.ndarray:
    """Brings values nearer to each channel's mean over the image."""
    del drawn
    x = image / 255
    means = x.mean(axis=(0, 1))
    return _to_uint8((x - means) * factor + means)


def saturate(image: np.ndarray, change: tuple[float, float], drawn: np.random.Generator) -> np.ndarray:
    """Multiplies the saturation of HSV, and adds to it."""
    del drawn
    return _in_hsv(image, 1, *change)


def pixelate(image: np.ndarray, factor: float, drawn: np.random.Generator) -> np.ndarray:
    """Brings the image to a share of its sides and back, by means over boxes."""
    del drawn
    height, width = image.shape[:2]
    small = PIL.Image.fromarray(image).resize((int(width * factor), int(height * factor)), PIL.Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), PIL.Image.Resampling.BOX))


def jpeg_compression(image: np.ndarray, quality: int, drawn: np.random.Generator) -> np.ndarray:
    """Compresses and decompresses."""
    del drawn
    file = io.BytesIO()
    PIL.Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(PIL.Image.open(file))


def _in_hsv(image: np.ndarray, channel: int, factor: float, more: float) -> np.ndarray:
    from matplotlib.colors import hsv_to_rgb, rgb_to_hsv  # takes a while to import

    hsv = rgb_to_hsv(image / 255)
    hsv[..., channel] = np.clip(hsv[..., channel] * factor + more, 0, 1)
    return _to_uint8(hsv_to_rgb(hsv))


# Name to what is done, and its parameter at each severity.
CORRUPTIONS: dict[str, tuple[Callable[[np.ndarray, Any, np.random.Generator], np.ndarray], tuple[Any, ...]]] = {
    "gaussian_noise": (gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": (shot_noise, (500, 250, 100, 75, 50)),
    "impulse_noise": (impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "speckle_noise": (speckle_noise, (0.06, 0.1, 0.12, 0.16, 0.2)),
    "gaussian_blur": (gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1.0)),
    "brightness": (brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": (contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "saturate": (saturate, ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))),
    "pixelate": (pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg_compression": (jpeg_compression, (80, 65, 58, 50, 40)),
}
