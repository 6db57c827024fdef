"""Images that are decoded when they are read, for sets that decoded would be too much for memory or disk."""

import contextlib
import functools
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from refine_jax.datasets import imagenet_pictures, preparation


class Encoded:
    """The pictures of a split that TFDS has prepared; to be read as an array of their middles is.

    It goes to another process by the name of its folder.

    Args:
        folder: Of the version.
        split: Its name.
        rows: Which records, in the order of the files. [N]
        size: Side of the images.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, folder: pathlib.Path, split: str, rows: np.ndarray, size: int):
        self._folder, self._split, self._rows, self._size = folder, split, rows, size

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, size, size, 3)."""
        return (len(self), self._size, self._size, 3)

    @property
    def nbytes(self) -> int:
        """Once they are decoded."""
        return int(np.prod(self.shape, dtype=np.int64))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: Any) -> np.ndarray:
        numbers = self._rows[rows]
        with _said(self._folder, self._split):
            pictures = preparation.records(_source(self._folder, self._split), numbers)
            middles = [imagenet_pictures.crop(picture["image"], self._size) for picture in pictures]
        return np.stack(middles) if middles else np.empty((0, *self.shape[1:]), np.uint8)

    def records_there(self) -> int:
        """Returns how many records the split has."""
        with _said(self._folder, self._split):
            return len(_source(self._folder, self._split))

    def take(self, rows: np.ndarray, axis: int = 0) -> "Encoded":
        """Returns some of them, encoded still; `axis` is 0, as that of an array's."""
        assert axis == 0
        return Encoded(self._folder, self._split, self._rows[rows], self._size)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        del copy  # it is always one
        return np.asarray(self[:], dtype)


@contextlib.contextmanager
def _said(folder: pathlib.Path, split: str) -> Iterator[None]:
    """Makes a sentence of what goes wrong while records are read."""
    try:
        yield
    except Exception as error:  # each format has its own errors for a file that is not whole
        raise preparation.damaged(folder, split, error) from error


@functools.lru_cache(maxsize=4)
def _source(folder: pathlib.Path, split: str) -> Any:
    """The records of a split, opened once a process."""
    return preparation.open_records(folder, split)
