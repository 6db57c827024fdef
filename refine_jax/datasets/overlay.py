"""Images some of which are replaced, without a second copy of all the others."""

from typing import Any

import numpy as np


class Overlay:
    """Images as they lie, and what some of them have become; to be read and written as an array of images is.

    Args:
        images: What is read as an array is, by a slice or by numbers; not written to. uint8 [N, H, W, 3]
    """

    def __init__(self, images: Any):
        self.underneath = images
        self._places = np.full(len(images), -1, np.int32)  # of each image among the replaced, -1 where it is not
        self._replaced = np.empty((0, *images.shape[1:]), images.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, 3)."""
        return self.underneath.shape

    @property
    def dtype(self) -> np.dtype:
        """Of the values."""
        return self.underneath.dtype

    @property
    def nbytes(self) -> int:
        """Of all images."""
        return self.underneath.nbytes

    def __len__(self) -> int:
        return len(self.underneath)

    def __getitem__(self, rows: Any) -> np.ndarray:
        return self.lay(np.array(self.underneath[rows]), rows)

    def __setitem__(self, rows: Any, images: np.ndarray) -> None:
        if len(images):
            self._places[rows] = len(self._replaced) + np.arange(len(images))
            self._replaced = np.concatenate([self._replaced, images])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        del copy  # it is always one
        return np.asarray(self[:], dtype)

    def lay(self, images: np.ndarray, rows: Any) -> np.ndarray:
        """Puts what is replaced over images that were read from underneath.

        Args:
            images: Written to. [n, H, W, 3]
            rows: Which they are: a slice or numbers.

        Returns:
            `images`.
        """
        places = self._places[rows]
        images[places >= 0] = self._replaced[places[places >= 0]]
        return images

    def copy(self) -> "Overlay":
        """Returns images of their own over the same underneath."""
        other = Overlay(self.underneath)
        other._places, other._replaced = self._places.copy(), self._replaced  # which is never written to
        return other
