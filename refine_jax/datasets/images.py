"""What a data set is to the rest of the project: two splits of uint8 images and labels, and a few facts."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import chex
import numpy as np

NO_LABEL = -1


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """The training or the test part of a data set; not to be written to.

    Args:
        images: RGB, uint8; may be mapped from a file, or be decoded when they are read, as `encoded.Encoded` are.
            [N, H, W, 3]
        labels: int32; all of them NO_LABEL where none is known. [N]
    """

    images: Any
    labels: np.ndarray

    def __post_init__(self):
        chex.assert_rank([self.images, self.labels], [4, 1])
        chex.assert_axis_dimension(self.images, 3, 3)
        chex.assert_type([self.images, self.labels], [np.uint8, np.int32])
        chex.assert_equal_shape_prefix([self.images, self.labels], 1)

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def unlabeled(cls, images: Any) -> "Split":
        """Returns images of which no class is known.  uint8 [N, H, W, 3]"""
        return cls(images, np.full(len(images), NO_LABEL, np.int32))

    @property
    def has_labels(self) -> bool:
        """Whether the images' classes are known."""
        return bool((self.labels != NO_LABEL).all())


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A data set for image classification.

    Args:
        name: One of `datasets.names()`.
        train: What is trained on.
        test: What is measured on, always as a whole.
        class_names: In the order of the labels. [K]; empty where no image has a label.
        mean: Of each channel over the training images, in units of [0, 1].
        std: Likewise.
        sha256: Of the images and labels, where the name does not say which they are.
        changes: Files that were not taken as they are, and why; JSON values.
    """

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    sha256: str | None = None
    changes: Mapping[str, Any] | None = None

    def __post_init__(self):
        chex.assert_equal_shape_suffix([self.train.images, self.test.images], 3)

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W)."""
        height, width = self.train.images.shape[1:3]
        return height, width
