"""A folder of the user's own pictures, in class folders or without labels; nothing in it is trusted.

Reading is bounded in files, bytes, pixels and memory. A file that cannot be taken is left out, and which and why is
kept in `Dataset.changes`.
"""

import hashlib
import json
import logging
import numbers
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from refine_jax.datasets import cache, folder_files
from refine_jax.datasets.folder_files import Changes, Tree, composed, shown
from refine_jax.datasets.folder_pictures import read_pictures
from refine_jax.datasets.images import NO_LABEL, Dataset, Split
from refine_jax.errors import DataError, SettingError, choose
from refine_jax.files import hash_arrays

logger = logging.getLogger(__name__)

NAME = "folder"
_FIELD = "dataset.root"
_TEST_FOLDERS = ("test", "val", "valid", "validation")
_LARGEST_SIDE = 4096
# One picture in so many is held back where there is no folder of test pictures.
_TEST_EVERY = 5
_PIXELS_AT_ONCE = 1 << 20  # to be counted, which takes 8 bytes each


def load(
    *,
    data_dir: str | os.PathLike | None = None,
    cache_dir: str | os.PathLike | None = None,
    root: str | os.PathLike | None = None,
    test_root: str | os.PathLike | None = None,
    image_size: int | None = None,
    class_names: Sequence[str] | None = None,
) -> Dataset:
    """Returns the pictures of a folder, decoded once and mapped from a cache after that.

    The folder is one of class folders, or of pictures without labels, or has train/ and perhaps test/, val/, valid/ or
    validation/ of these, the first that is there, in upper or lower case. Class folders are numbered by their sorted
    names, as torchvision's ImageFolder does. Where there is no folder of test pictures, every fifth picture of each
    class is one, by the SHA-256 of its path.

    Args:
        data_dir: Not looked at.
        cache_dir: Where decoded images are kept; None: see `cache.directory`.
        root: The folder.
        test_root: Another one, whose pictures are the test images; those of `root` are all trained on then.
        image_size: Side that pictures are brought to: the short side is resized to it, and the middle is taken;
            None: as they are, and all must have one size.
        class_names: The classes in the order of their numbers, where that is not the sorted one; some may have no
            folder.

    Raises:
        SettingError: An option has a value that cannot be.
        DataError: There is not what is needed; what, and where.
        StorageError: A file cannot be read at the moment.
    """
    del data_dir
    if image_size is not None:
        whole = isinstance(image_size, numbers.Integral) and not isinstance(image_size, bool)
        if not whole or not 1 <= image_size <= _LARGEST_SIDE:
            raise SettingError("dataset.image_size", image_size, f"a whole number, 1 to {_LARGEST_SIDE}")
        image_size = int(image_size)
    trees, changes = _find(root, test_root), Changes()
    read = {
        name: folder_files.read_tree(place, changes, "dataset.test_root" if name == "test" and test_root else _FIELD)
        for name, place in trees.items()
    }
    names = _class_names(read, class_names)
    for name, tree in read.items():
        if not tree.files:
            raise DataError(
                f"{shown(trees[name])} holds no picture ({', '.join(folder_files.SUFFIXES)}){changes.summary()}"
            )
    files = {name: _labeled(tree, names) for name, tree in read.items()}
    if "test" not in files:
        files = _hold_back(files["train"], read["train"])
    places = {name: read.get(name, read["train"]).place for name in files}
    key = _fingerprint(files, places, image_size)
    arrays = cache.load_or_build(NAME, key, lambda: _build(files, places, image_size), cache_dir)
    changes.add(json.loads(bytes(arrays["changes"])))
    changes.tell("dataset")
    return Dataset(
        name=NAME,
        train=Split(arrays["train_images"], arrays["train_labels"]),
        test=Split(arrays["test_images"], arrays["test_labels"]),
        class_names=names,
        mean=_three(arrays["mean"]),
        std=_three(arrays["std"]),
        sha256=bytes(arrays["sha256"]).decode(),
        changes=changes.to_json(),
    )


def _find(root: str | os.PathLike | None, test_root: str | os.PathLike | None) -> dict[str, pathlib.Path]:
    """The folders of training images and, where there is one, of test images."""
    if root is None:
        raise SettingError(_FIELD, root, "a folder of pictures: of class folders, or of pictures without labels")
    given = {_FIELD: root} | ({"dataset.test_root": test_root} if test_root is not None else {})
    places = []
    for field, value in given.items():
        path = pathlib.Path(value).expanduser().absolute()
        try:
            is_folder = path.is_dir()
        except (OSError, ValueError):  # no name that a file could have
            is_folder = False
        if not is_folder:
            raise SettingError(
                field,
                str(value),
                "a folder of pictures; " + ("this is a file" if path.exists() else "this is not there"),
            )
        places.append(path)
    if test_root is not None:
        train = _splits(places[0], places[1]).get("train", places[0])
        if _overlap(train, places[1]):
            allowed = f"a folder apart from {shown(train)}, whose pictures are trained on: neither in it nor around it"
            raise SettingError("dataset.test_root", str(test_root), allowed)
        return {"train": train, "test": places[1]}
    found = _splits(places[0])
    if "test" in found and _overlap(found["train"], found["test"]):
        names = " and ".join(f"{shown(found[role].name)}/" for role in ("train", "test"))
        raise DataError(f"{shown(places[0])}: {names} are one folder, or one is in the other, by a link")
    return found if "train" in found else {"train": places[0]}


def _overlap(one: pathlib.Path, other: pathlib.Path) -> bool:
    """Whether one folder lies in the other, or is the other."""
    return folder_files.is_below(one, other) or folder_files.is_below(other, one)


def _splits(root: pathlib.Path, beside: pathlib.Path | None = None) -> dict[str, pathlib.Path]:
    """The folders called train and test, or as one of `_TEST_FOLDERS`, within the root.

    Raises:
        DataError: train may as well be a class: there are folders of pictures beside it, other than `beside`. Or two
            folders differ by upper and lower case alone.
    """
    folders = folder_files.folders(root)
    named: dict[str, str] = {}
    for name in folders:
        role = name.lower()
        if role in ("train", *_TEST_FOLDERS) and role in named:
            raise DataError(f"{shown(root)} has both {shown(named[role])}/ and {shown(name)}/: one of them is meant")
        named[role] = name
    if "train" not in named:
        return {}
    others = [name for name in folders if name.lower() not in ("train", *_TEST_FOLDERS) and root / name != beside]
    if others := folder_files.of_pictures(root, others):
        listed = ", ".join(f"{shown(name)}/" for name in others[:3]) + (", ..." if len(others) > 3 else "")
        train = f"{named['train']}/"
        raise DataError(
            f"{shown(root)} has {train} beside {listed}: either {train} holds the training pictures, then give it as "
            f"{_FIELD}, and test pictures as dataset.test_root; or it is a class like the others, then move all of "
            "them into one folder train/"
        )
    test = next((named[role] for role in _TEST_FOLDERS if role in named), None)
    there = {"train": named["train"]} | ({} if test is None else {"test": test})
    return {role: folder_files.inside(root, name) for role, name in there.items()}


def _class_names(trees: dict[str, Tree], given: Sequence[str] | None) -> tuple[str, ...]:
    """The classes in the order of their numbers; none where no picture has a label."""
    if given is not None:
        # A single str is a sequence of strings, too: of its letters.
        texts = not isinstance(given, str) and all(isinstance(name, str) for name in given)
        if not texts or len(given) < 2 or len({composed(name) for name in given}) < len(given):
            raise SettingError("dataset.class_names", given, "two or more names, each once, such as ('cat', 'dog')")
        names = tuple(given)
    else:
        names = next((tree.classes for tree in trees.values() if tree.classes), ())
        if len(names) == 1:
            raise DataError(
                f"{shown(trees['train'].place)} has one class folder, {shown(names[0])}: two or more are class "
                "folders; pictures without labels lie in the folder itself"
            )
        if all(name.isdecimal() for name in names) and sorted(names, key=int) != list(names):
            logger.warning(
                "dataset: class folders are numbered by their sorted names, as torchvision does, so '10' comes "
                "before '2'; dataset.class_names gives another order"
            )
    for tree in trees.values():
        for name in tree.classes:
            if composed(name) not in map(composed, names):
                choose(f"a class folder of {shown(tree.place)}", name, names)
    return names


def _labeled(tree: Tree, names: tuple[str, ...]) -> list[tuple[str, int]]:
    """The files with their numbers among all classes."""
    if not tree.classes:
        return [(path, NO_LABEL) for path, _ in tree.files]
    numbers = {composed(name): number for number, name in enumerate(names)}
    labels = [numbers[composed(name)] for name in tree.classes]
    return [(path, labels[position]) for path, position in tree.files]


def _hold_back(files: list[tuple[str, int]], tree: Tree) -> dict[str, list[tuple[str, int]]]:
    """Every fifth picture of each class is a test image, in an order that has nothing to do with their names' own.

    A link goes where the picture goes that it leads to, else this one would be trained on and tested on.
    """
    leaders = {path: path for path, _ in files if path not in tree.links}
    leading = {path: leaders.setdefault(tree.links.get(path, path), path) for path, _ in files}
    alone = [file for file in files if leading[file[0]] == file[0]]
    shuffled = sorted(alone, key=lambda file: hashlib.sha256(os.fsencode(file[0])).digest())
    by_class: dict[int, list[str]] = {}
    for path, label in shuffled:
        by_class.setdefault(label, []).append(path)
    test = {path for paths in by_class.values() for path in paths[_TEST_EVERY - 1 :: _TEST_EVERY]}
    if not test:
        raise DataError(
            f"{shown(tree.place)} has too few pictures to hold back every {_TEST_EVERY}th of a class as a test image: "
            "give test pictures as dataset.test_root"
        )
    return {
        "train": [file for file in files if leading[file[0]] not in test],
        "test": [file for file in files if leading[file[0]] in test],
    }


def _fingerprint(
    files: dict[str, list[tuple[str, int]]], places: dict[str, pathlib.Path], image_size: int | None
) -> str:
    """A short hash that changes when a file does.

    Raises:
        StorageError: One cannot be looked at.
    """
    digest = hashlib.sha256(json.dumps(image_size).encode())
    for name, listed in files.items():
        for path, label in listed:
            file = places[name] / path
            try:
                status = file.stat()
            except OSError as error:
                raise folder_files.unreadable(file, error) from error
            # Archives and cp -p bring a time of change along, which the last of these is not.
            facts = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
            digest.update(os.fsencode(f"{name} {label} {facts} {file}\n"))
    return digest.hexdigest()[:16]


def _build(
    files: dict[str, list[tuple[str, int]]], places: dict[str, pathlib.Path], image_size: int | None
) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    changes, count = Changes(), sum(map(len, files.values()))
    logger.info("dataset: %d pictures of %s are decoded, once", count, shown(places["train"]))
    for name, listed in files.items():
        images, labels = read_pictures(places[name], listed, image_size, changes, together=count)
        arrays[f"{name}_images"], arrays[f"{name}_labels"] = images, labels
    sizes = [arrays[f"{name}_images"].shape[1:3] for name in files]
    if len(set(sizes)) > 1:
        (height, width), (test_height, test_width) = sizes
        allowed = (
            f"a side to bring all pictures to: those to train on have {width} x {height} pixels, those to test on"
        )
        raise SettingError("dataset.image_size", None, f"{allowed} {test_width} x {test_height}")
    sha256 = hash_arrays(arrays)
    arrays["mean"], arrays["std"] = _statistics(arrays["train_images"])
    arrays["sha256"] = np.frombuffer(sha256.encode(), np.uint8)
    arrays["changes"] = np.frombuffer(json.dumps(changes.to_json()).encode(), np.uint8)
    return arrays


def _statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each channel in units of [0, 1]; no deviation is 0, since it is divided by."""
    values = np.arange(256) / 255
    pixels, counts = images.reshape(-1, 3), np.zeros((3, 256), np.int64)
    for start in range(0, len(pixels), _PIXELS_AT_ONCE):
        some = pixels[start : start + _PIXELS_AT_ONCE]
        counts += np.stack([np.bincount(some[:, channel], minlength=256) for channel in range(3)])
    shares = counts / counts.sum(axis=1, keepdims=True)  # [3, 256]
    mean = shares @ values
    variance = (shares * (values - mean[:, None]) ** 2).sum(axis=1)
    return mean, np.maximum(np.sqrt(variance), 1 / 255)


def _three(channels: np.ndarray) -> tuple[float, float, float]:
    red, green, blue = map(float, channels)
    return red, green, blue
