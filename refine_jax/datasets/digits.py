"""scikit-learn's handwritten digits: 1,797 real images that come with the package, no network needed."""

import os

import numpy as np
from PIL import Image

from refine_jax.datasets.images import Dataset, Split

SIZE = 16
# Over the training images, in units of [0, 1]; the three channels are equal.
MEAN = 0.3049
STD = 0.3184
# The values of the 8 x 8 originals are counts of ink, 0 to 16.
_MAX_INK = 16


def load(*, data_dir: str | os.PathLike | None = None, cache_dir: str | os.PathLike | None = None) -> Dataset:
    """Returns the digits as 16 x 16 RGB, white on black: 1,352 to train on, 445 to test on.

    Within each class, in the order of the file, every fourth image is a test image.

    Args:
        data_dir: Not looked at: the images are part of scikit-learn.
        cache_dir: Not looked at: there is next to nothing to decode.

    References:
        Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, UCI, 1998), as `sklearn.datasets.load_digits`.
    """
    del data_dir, cache_dir
    from sklearn.datasets import load_digits  # a second to import, for this one function

    originals = load_digits()
    labels = originals.target.astype(np.int32)
    images = np.stack([_enlarge(ink) for ink in originals.images])
    test = np.zeros(len(labels), bool)
    for label in range(10):
        test[np.flatnonzero(labels == label)[3::4]] = True
    return Dataset(
        name="digits",
        train=Split(images[~test], labels[~test]),
        test=Split(images[test], labels[test]),
        class_names=tuple("0123456789"),
        mean=(MEAN,) * 3,
        std=(STD,) * 3,
    )


def _enlarge(ink: np.ndarray) -> np.ndarray:
    """Turns counts of ink, 0 to 16 [8, 8], into uint8 RGB [SIZE, SIZE, 3]."""
    gray = Image.fromarray(np.rint(ink * (255 / _MAX_INK)).astype(np.uint8))
    return np.asarray(gray.resize((SIZE, SIZE), Image.Resampling.BILINEAR).convert("RGB"))
