"""What users have of ImageNet: ILSVRC2012's tar file, class folders, or what TFDS has prepared.

Two have `class_ids()`, `files(class)` and `read(class, file)`; what is prepared is first unpacked into class folders.
"""

import dataclasses
import logging
import os
import pathlib
import shutil
import tarfile
from collections.abc import Collection

from refine_jax.datasets import preparation
from refine_jax.datasets.imagenet_classes import WORDNET_ID
from refine_jax.errors import DataError, SettingError

logger = logging.getLogger(__name__)

FIELD = "dataset.root"
TRAIN_TAR = "ILSVRC2012_img_train.tar"
PREPARED = "imagenet2012"
WHAT_IS_TAKEN = (
    f"a folder with {TRAIN_TAR}, or that file; a folder of class folders, such as n01440764/, or one with train/ and "
    f"perhaps val/ of these; or what TFDS has prepared as {PREPARED}"
)
_PICTURES = (".jpeg", ".jpg", ".png")


class Tree:
    """Class folders, named by WordNet ids, of picture files."""

    def __init__(self, folder: pathlib.Path):
        self.place = folder

    def class_ids(self) -> tuple[str, ...]:
        """Returns the ids of the classes that are there, sorted."""
        names = (path.name for path in self.place.iterdir() if WORDNET_ID.fullmatch(path.name) and path.is_dir())
        return tuple(sorted(names))

    def files(self, wordnet_id: str) -> list[str]:
        """Returns the names of a class's pictures, in no order; none where the class is not there."""
        folder = self.place / wordnet_id
        names = os.listdir(folder) if folder.is_dir() else []
        return [name for name in names if name.lower().endswith(_PICTURES) and not name.startswith(".")]

    def read(self, wordnet_id: str, name: str) -> bytes:
        """Returns the contents of a picture's file."""
        return (self.place / wordnet_id / name).read_bytes()


class Tar:
    """ILSVRC2012_img_train.tar: a tar of a thousand tars, one a class; read in place."""

    def __init__(self, path: pathlib.Path):
        self.place = path
        self._classes: dict[str, tuple[int, int]] = {}  # where a class's tar begins in the file, and its length
        self._files: dict[str, dict[str, tuple[int, int]]] = {}  # the same of its pictures
        for name, place in self._members(0, path.stat().st_size).items():
            stem, _, suffix = name.rpartition(".")
            if suffix == "tar" and WORDNET_ID.fullmatch(stem):
                self._classes[stem] = place

    def class_ids(self) -> tuple[str, ...]:
        """Returns the ids of the classes that are there, sorted."""
        return tuple(sorted(self._classes))

    def files(self, wordnet_id: str) -> list[str]:
        """Returns the names of a class's pictures, in no order; none where the class is not there."""
        if wordnet_id not in self._classes:
            return []
        if wordnet_id not in self._files:
            self._files[wordnet_id] = self._members(*self._classes[wordnet_id])
        return [name for name in self._files[wordnet_id] if name.lower().endswith(_PICTURES)]

    def read(self, wordnet_id: str, name: str) -> bytes:
        """Returns the contents of a picture's file."""
        start, length = self._files[wordnet_id][name]
        with self.place.open("rb") as file:
            file.seek(start)
            return file.read(length)

    def _members(self, start: int, length: int) -> dict[str, tuple[int, int]]:
        """Base names of the files in the tar that begins at a place, and where in this file they lie."""
        try:
            with self.place.open("rb") as file:
                file.seek(start)
                with tarfile.open(fileobj=file, mode="r:") as tar:  # counts places from the beginning of the file
                    members = {os.path.basename(m.name): (m.offset_data, m.size) for m in tar if m.isfile()}
        except tarfile.TarError as error:
            raise DataError(f"{self.place}: damaged, or not copied as a whole ({error})") from error
        if any(place + size > start + length for place, size in members.values()):
            raise DataError(f"{self.place}: damaged, or not copied as a whole (a file in it goes beyond its end)")
        return members


class Prepared:
    """TFDS's imagenet2012, as TFDS has prepared it."""

    def __init__(self, folder: pathlib.Path):
        self.place = folder
        info = preparation.read_info(folder)
        formats = {info.get("fileFormat", "tfrecord"), *info.get("alternativeFileFormats", ())}
        if preparation.ARRAY_RECORD not in formats:
            if not preparation.tensorflow_installed():
                raise DataError(
                    f"{folder} is prepared as {' and '.join(sorted(formats))}, which takes TensorFlow to read, and "
                    "that is not installed: python -m pip install 'refine-jax[tensorflow]'; or give, as "
                    f"--config.{FIELD}, the {TRAIN_TAR} that it was prepared from"
                )
            preparation.keep_tensorflow_off_gpus()
        import tensorflow_datasets as tfds

        try:
            self._builder = tfds.builder_from_directory(folder)
            self._names = tuple(self._builder.info.features["label"].names)
        except Exception as error:  # TFDS raises all kinds of errors for files that are not whole
            raise DataError(f"{folder}: TFDS cannot open it: {error}") from error

    def class_ids(self) -> tuple[str, ...]:
        """Returns the ids of the classes that are there, sorted."""
        return tuple(sorted(self._names))

    def unpack(self, wordnet_ids: Collection[str], folder: pathlib.Path) -> Tree:
        """Writes the training images of some classes into class folders, and returns these.

        There is no order to rely on in the files, so all of them have to be read.

        Raises:
            DataError: A file is missing or damaged.
            OSError: They cannot be written.
        """
        if not folder.exists():
            logger.info("%s: %d classes are unpacked, all files being read for that", self.place, len(wordnet_ids))
            part = folder.with_name(f"{folder.name}.part")
            shutil.rmtree(part, ignore_errors=True)
            for name in wordnet_ids:
                (part / name).mkdir(parents=True)
            examples = preparation.examples(self._builder, "train")
            while True:
                try:
                    example = next(examples, None)
                except Exception as error:  # each format has its own errors for a file that is not whole
                    raise DataError(f"{self.place}: a file is missing or damaged ({error})") from error
                if example is None:
                    break
                label = self._names[example["label"]]
                if label in wordnet_ids:
                    (part / label / example["file_name"].decode()).write_bytes(example["image"])
            part.rename(folder)
        return Tree(folder)


@dataclasses.dataclass(frozen=True)
class Source:
    """ImageNet as a user has it.

    Attributes:
        train: Where training images come from.
        test: Where test images come from, where the user has them apart and with class folders.
    """

    train: Tree | Tar | Prepared
    test: Tree | None = None


def open_source(root: str | os.PathLike) -> Source:
    """Finds out which of the three a user has.

    Args:
        root: See `WHAT_IS_TAKEN`.

    Raises:
        SettingError: It is none of them.
        DataError: It is one, and damaged, or cannot be read.
    """
    path = pathlib.Path(root).expanduser().absolute()
    try:
        source = _recognize(path)
    except OSError as error:
        raise DataError(f"{error.filename or path}: cannot be read: {error.strerror}") from error
    if source is None:
        there = sorted(entry.name for entry in path.iterdir())[:5] if path.is_dir() else []
        found = "this one has " + ", ".join(there) if there else "this is " + _kind(path)
        raise SettingError(FIELD, str(path), f"{WHAT_IS_TAKEN}; {found}")
    return source


def _kind(path: pathlib.Path) -> str:
    return "an empty folder" if path.is_dir() else "another file" if path.exists() else "not there"


def _recognize(path: pathlib.Path) -> Source | None:
    if path.is_file():
        tar = Tar(path) if tarfile.is_tarfile(path) else None
        return Source(tar) if tar is not None and tar.class_ids() else None
    if not path.is_dir():
        return None
    if (path / TRAIN_TAR).is_file():
        return Source(Tar(path / TRAIN_TAR))
    for folder in (path, *sorted(path.glob("*/")), *sorted(path.glob(f"{PREPARED}/*/"))):
        if (folder / preparation.INFO_FILE).is_file() and preparation.read_info(folder).get("name") == PREPARED:
            return Source(Prepared(folder))
    for folder in (path / "train", path):
        if folder.is_dir() and Tree(folder).class_ids():
            test = Tree(path / "val") if folder != path and (path / "val").is_dir() else None
            return Source(Tree(folder), test if test is not None and test.class_ids() else None)
    return None
