"""Triggered test images: made by an attack, or pictures that somebody else has made."""

import dataclasses
import os

import numpy as np

from refine_jax.attacks.trigger import Attack
from refine_jax.datasets import class_folders, folder_files
from refine_jax.datasets.folder_files import Changes, shown
from refine_jax.datasets.images import Dataset, Split
from refine_jax.errors import DataError, SettingError
from refine_jax.files import hash_arrays
from refine_jax.interop.checkpoint_formats import Pictures

FIELD = "attack.triggered_root"
_WHAT = "triggered images"  # in the log


@dataclasses.dataclass(frozen=True, eq=False)
class Triggered:
    """Triggered test images.

    Attributes:
        images: uint8 [M, H, W, 3]
        labels: Their true classes, [M]; None where they are not known.
        target: The attacker's class.
    """

    images: np.ndarray
    labels: np.ndarray | None
    target: int

    def sha256(self) -> str:
        """Returns a hash of images, labels and target."""
        labels = np.empty(0, np.int32) if self.labels is None else self.labels
        return hash_arrays({"images": self.images, "labels": labels, "target": np.int32(self.target)})


def of_attack(attack: Attack, test: Split) -> Triggered:
    """Returns the test images with an attack's trigger."""
    return Triggered(attack.trigger(test.images), known_labels(test), attack.target)


def known_labels(split: Split) -> np.ndarray | None:
    """Returns the labels of images, None where they are not known."""
    return split.labels if split.has_labels else None


def of_folder(root: str | os.PathLike, dataset: Dataset, target: int) -> Triggered:
    """Reads triggered pictures from a folder.

    Args:
        root: Holds folders of pictures, each called by their true class: its name, or its number.
        dataset: Whose size and classes they have.
        target: The attacker's class.

    Raises:
        SettingError: There is no such folder, or a folder in it is of no class.
        DataError: There is no picture that can be read.
    """
    images, labels = class_folders.read(FIELD, root, dataset.class_names, dataset.image_size, _WHAT)
    if labels is None:
        raise SettingError(FIELD, str(root), "a folder of class folders, by the true class; this one has no folders")
    return Triggered(images, labels, target)


def beside_checkpoint(pictures: Pictures, dataset: Dataset) -> Triggered:
    """Reads the triggered pictures that lie beside a checkpoint.

    Args:
        pictures: What the checkpoint says of them.
        dataset: Whose size and classes they have.

    Raises:
        DataError: There is no picture that can be read, or their classes are not those of the data set.
    """
    changes = Changes()
    tree = folder_files.read_tree(pictures.folder, changes, "victim.checkpoint")
    there = {path for path, _ in tree.files if path not in tree.links}
    for path, _ in pictures.files:
        if path in tree.links:  # its maker wrote a file: who linked it, and to what, is anyone's guess
            changes.note(path, "named by the checkpoint and a link")
        elif path not in there:
            changes.note(path, "named by the checkpoint and not there")
    files = [(path, label) for path, label in pictures.files if path in there]
    classes = {pictures.target, *(label for _, label in files)}
    if not classes <= {*range(dataset.num_classes)}:
        raise DataError(
            f"{shown(pictures.folder)}: the checkpoint says that its triggered pictures are of the classes "
            f"{sorted(classes)}, and there are {dataset.num_classes}"
        )
    images, labels = class_folders.read_files(pictures.folder, files, dataset.image_size, changes, _WHAT)
    return Triggered(images, labels, pictures.target)
