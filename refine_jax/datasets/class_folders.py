"""Pictures in folders called as their classes, at the size and with the classes that are known already."""

import os
import pathlib
from collections.abc import Sequence

import numpy as np

from refine_jax.datasets import folder_files, folder_pictures
from refine_jax.datasets.folder_files import Changes, composed, shown
from refine_jax.errors import DataError, SettingError, did_you_mean

_MOST_CLASSES = 1_000_000  # where nobody says how many there are: a larger number is a date or the like


def read(
    field: str, root: str | os.PathLike, class_names: Sequence[str], image_size: tuple[int, int], what: str
) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads the pictures of a folder; those that cannot be taken are left out and said.

    Args:
        field: Name of the setting or flag that the folder is from.
        root: Holds folders of pictures, each called by their class: its name, or its number. Or pictures alone.
        class_names: In the order of the classes; none where only numbers can be meant.
        image_size: (H, W) that the pictures are brought to where it is square, and must have in any case.
        what: They are, for the log.

    Returns:
        (images uint8 [N, H, W, 3], labels int32 [N], None where the folder has no class folders).

    Raises:
        SettingError: There is no such folder, or a folder in it is of no class.
        DataError: There is no picture that can be read, or they have another size.
        StorageError: One cannot be read at the moment.
    """
    place, changes = pathlib.Path(root).expanduser().absolute(), Changes()
    if not place.is_dir():
        raise SettingError(field, str(root), "a folder of pictures, in folders called as their classes")
    tree = folder_files.read_tree(place, changes, field)
    numbers = [_number(field, name, class_names) for name in tree.classes]
    files = [(path, numbers[position] if numbers else 0) for path, position in tree.files]
    images, labels = read_files(place, files, image_size, changes, what, field)
    return images, labels if numbers else None


def read_files(
    place: pathlib.Path,
    files: Sequence[tuple[str, int]],
    image_size: tuple[int, int],
    changes: Changes,
    what: str,
    field: str = "victim.checkpoint",
) -> tuple[np.ndarray, np.ndarray]:
    """Reads pictures that are known by name.

    Args:
        place: The folder.
        files: Paths below it, and the label of each.
        image_size: As in `read`.
        changes: What was left out so far; what is now is added, and all of it is said.
        what: They are, for the log.
        field: Name of the setting or flag that they are from.

    Returns:
        (images uint8 [N, H, W, 3], labels int32 [N]).

    Raises:
        DataError: There is no picture that can be read, or they have another size.
        StorageError: One cannot be read at the moment.
    """
    if not files:
        raise DataError(
            f"{shown(place)} holds no picture ({', '.join(folder_files.SUFFIXES)}) to be taken{changes.summary()}"
        )
    height, width = image_size
    side = height if height == width else None
    images, labels = folder_pictures.read_pictures(place, files, side, changes, field)
    if images.shape[1:3] != (height, width):
        found = f"{images.shape[2]} x {images.shape[1]}"
        raise DataError(f"{shown(place)} holds pictures of {found} pixels: {width} x {height} are needed")
    changes.tell(what)
    return images, labels


def _number(field: str, name: str, class_names: Sequence[str]) -> int:
    """The class that a folder's name says."""
    known_names = [composed(known) for known in class_names]
    if composed(name) in known_names:
        return known_names.index(composed(name))
    # Where classes are called by numbers themselves, another number is none of them.
    takes_numbers = not any(known.isdecimal() for known in class_names)
    most = len(class_names) or _MOST_CLASSES
    # By its length first: Python refuses to read a number of thousands of digits.
    if takes_numbers and name.isdecimal() and len(name.lstrip("0")) <= len(str(most)) and int(name) < most:
        return int(name)
    if class_names:
        numbers = f", or a number, 0 to {len(class_names) - 1}" if takes_numbers else ""
        allowed = f"{', '.join(class_names)}{numbers}{did_you_mean(name, class_names)}"
    else:
        allowed = f"a class's number, 0 to {most - 1}, as no names are known"
    raise SettingError(f"a class folder of {field}", name, allowed)
