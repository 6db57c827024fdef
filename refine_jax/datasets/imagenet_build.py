"""Draws classes and images of ImageNet, mends the files that need it, and has TFDS write the outcome.

The pictures are first collected in a folder of their own, class by class, which an interrupted build finds again.
"""

import concurrent.futures
import contextlib
import dataclasses
import fcntl
import hashlib
import itertools
import logging
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from refine_jax.datasets import imagenet_classes, imagenet_pictures, pictures, preparation
from refine_jax.datasets.imagenet_classes import describe, rank
from refine_jax.datasets.imagenet_source import Prepared, Source, Tar, Tree, open_source
from refine_jax.errors import DataError
from refine_jax.files import read_json, write_json

logger = logging.getLogger(__name__)

NAME = "imagenet50"
VERSION = "1.0.0"
_LIST = "pictures.json"
_SKIPPED = "skipped"


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be built.

    Attributes:
        classes: From `imagenet_classes.read`.
        per_class: Training and test images of each class.
        short_side: To which longer ones are resized; None: none is.
    """

    classes: imagenet_classes.Classes
    per_class: tuple[int, int]
    short_side: int | None

    @property
    def config_name(self) -> str:
        """What TFDS keeps it under, beside what was built for other requests."""
        if isinstance(self.classes, tuple):
            classes = f"ids_{hashlib.sha256(','.join(self.classes).encode()).hexdigest()[:8]}"
        else:
            classes = "published" if self.classes is None else f"first_{self.classes}"
        return "_".join([classes, *map(str, self.per_class), str(self.short_side or "original")])

    def folder(self, data_root: pathlib.Path) -> pathlib.Path:
        """Where TFDS keeps it."""
        return data_root / NAME / self.config_name / VERSION


@dataclasses.dataclass(frozen=True)
class _Draw:
    """Where a class's pictures come from, each list in the order in which they are to be taken.

    Attributes:
        wordnet_id: Of the class.
        lists: Place, names of files, and how many pictures of which splits they have to give, in this order.
    """

    wordnet_id: str
    lists: tuple[tuple[Tree | Tar, tuple[str, ...], Mapping[str, int]], ...]


def build(root: str | os.PathLike, request: Request, data_root: pathlib.Path) -> pathlib.Path:
    """Builds what is requested below `data_root`, or goes on where an earlier build was interrupted.

    Args:
        root: What the user has, see `imagenet_source`.
        request: What to take of it.
        data_root: The folder that holds TFDS's data sets.

    Returns:
        The folder of the version that TFDS can open.

    Raises:
        SettingError: `root` is none of what is taken.
        DataError: Classes or images are missing, files are damaged, or the outcome cannot be written.
    """
    source = open_source(root)
    ids = imagenet_classes.choose(request.classes, source.train.class_ids(), source.train.place)
    folder = data_root / NAME / f"collecting_{request.config_name}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder.parent):
            if not (request.folder(data_root) / preparation.INFO_FILE).exists():  # else another process was faster
                _build(source, ids, pathlib.Path(root).expanduser().absolute(), request, data_root, folder)
    except OSError as error:
        done = sum((folder / name / _LIST).exists() for name in ids)
        raise DataError(
            f"{error.filename or folder}: {error.strerror or error}. {done} of {len(ids)} classes are collected; run "
            "again when that is mended, and it goes on from there"
        ) from error
    return request.folder(data_root)


@contextlib.contextmanager
def _alone(folder: pathlib.Path) -> Iterator[None]:
    """Waits until no other process builds in a folder; where a file system has no locks, it does not wait."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _build(
    source: Source,
    ids: Sequence[str],
    root: pathlib.Path,
    request: Request,
    data_root: pathlib.Path,
    folder: pathlib.Path,
) -> None:
    _begin(folder, {"source": str(root), "classes": list(ids)})
    if isinstance(source.train, Prepared):
        source = Source(source.train.unpack(ids, folder / "unpacked"))
    draws = _plan(source, ids, request.per_class)
    _collect(draws, folder, request)
    metadata = {
        "source": str(root),
        "class_names": [imagenet_classes.names().get(name, name) for name in ids],
        "split": "drawn from the training images" if len(draws[0].lists) == 1 else "as in the source",
        "changes": {name: changes for name in ids if (changes := read_json(folder / name / _LIST)["changes"])},
    }
    for left in request.folder(data_root).parent.glob("incomplete.*"):  # by a process that was killed
        shutil.rmtree(left)
    _pack(folder, ids, request, metadata, data_root)
    shutil.rmtree(folder, ignore_errors=True)


def _begin(folder: pathlib.Path, facts: dict[str, Any]) -> None:
    """Makes the folder where pictures are collected; one for other facts is emptied first."""
    file = folder / "source.json"
    if folder.exists() and (not file.exists() or read_json(file) != facts):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(file, facts)


def _plan(source: Source, ids: Sequence[str], per_class: tuple[int, int]) -> list[_Draw]:
    """Decides which files may be taken, and in which order: by `rank` of their names without the suffix."""
    assert not isinstance(source.train, Prepared)
    train, test = per_class
    ordered = {name: _order(source.train.files(name)) for name in ids}
    if source.test is not None:
        apart = {name: _order(source.test.files(name)) for name in ids}
        few = [name for name in ids if len(apart[name]) < test]
        if not few:
            _check_counts(source.train, ordered, train)
            return [
                _Draw(
                    name, ((source.test, apart[name], {"test": test}), (source.train, ordered[name], {"train": train}))
                )
                for name in ids
            ]
        logger.info(
            "%s has too few images of %d classes, so test images too are drawn from %s",
            *(source.test.place, len(few), source.train.place),
        )
    _check_counts(source.train, ordered, train + test)
    counts = {"test": test, "train": train}
    return [_Draw(name, ((source.train, ordered[name], counts),)) for name in ids]


def _order(files: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(files, key=lambda name: (rank(pathlib.PurePath(name).stem), name)))


def _check_counts(place: Tree | Tar, files: Mapping[str, Sequence[str]], needed: int) -> None:
    few = [f"{describe(name)} {len(there)}" for name, there in files.items() if len(there) < needed]
    if few:
        raise DataError(
            f"{place.place} has fewer than {needed} images, which dataset.per_class asks for, of {len(few)} classes: "
            f"{', '.join(few)}"
        )


def _collect(draws: Sequence[_Draw], folder: pathlib.Path, request: Request) -> None:
    """Writes the pictures of every class that is not there yet into a folder of its own."""
    changed = skipped = 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for number, draw in enumerate(draws, 1):
            done = folder / draw.wordnet_id
            if not (done / _LIST).exists():
                part = folder / f"{draw.wordnet_id}.part"
                shutil.rmtree(part, ignore_errors=True)
                part.mkdir()
                write_json(part / _LIST, _collect_class(draw, part, request.short_side, pool))
                part.rename(done)
            changes = read_json(done / _LIST)["changes"]
            skipped += sum(what.startswith(_SKIPPED) for _, what in changes)
            changed += len(changes)
            logger.info(
                "%d of %d classes: %s, %d images",
                number,
                len(draws),
                describe(draw.wordnet_id),
                sum(request.per_class),
            )
    logger.info(
        "%d files were converted and %d skipped; 'changes' in metadata.json lists them", changed - skipped, skipped
    )


def _collect_class(
    draw: _Draw, part: pathlib.Path, short_side: int | None, pool: concurrent.futures.Executor
) -> dict[str, Any]:
    """Writes a class's pictures, numbered, and returns what they were called and what was done to them."""
    taken: list[str] = []
    changes: list[tuple[str, str]] = []
    places: dict[str, tuple[int, int]] = {}  # of each split, in `taken`
    for place, files, counts in draw.lists:
        start, wanted = len(taken), len(taken) + sum(counts.values())
        queue = iter(files)
        # A file that cannot be used is replaced by the next in order.
        while len(taken) < wanted and (names := list(itertools.islice(queue, wanted - len(taken)))):
            mended = pool.map(lambda name, place=place: _mend(place, draw.wordnet_id, name, short_side), names)
            for name, (encoded, what) in zip(names, mended, strict=True):
                if what:
                    changes.append((name, what))
                if encoded is not None:
                    (part / _file_name(len(taken))).write_bytes(encoded)
                    taken.append(name)
        if len(taken) < wanted:
            skipped = "; ".join(f"{name}: {what}" for name, what in changes if what.startswith(_SKIPPED))
            raise DataError(
                f"{place.place} has {len(taken) - start} images of {describe(draw.wordnet_id)} that can be used, and "
                f"dataset.per_class asks for {wanted - start}; {skipped}"
            )
        for split, count in counts.items():
            places[split] = (start, start + count)
            start += count
    return {"taken": taken, "places": places, "changes": changes}


def _mend(place: Tree | Tar, wordnet_id: str, name: str, short_side: int | None) -> tuple[bytes | None, str]:
    """Returns a picture as it is to be kept, None where it cannot be used, and what was done, for the list.

    Raises:
        OSError: It cannot be read.
    """
    try:
        contents = place.read(wordnet_id, name)
    except OSError as error:  # of the disk or the network: another time the file can be read, and the draw has it
        what = f"{name} of {wordnet_id} cannot be read: {error.strerror or error}"
        raise OSError(error.errno, what, os.fspath(place.place)) from error
    try:
        encoded, wrong = imagenet_pictures.repair(contents, short_side)
    except (OSError, pictures.UnreadableError) as error:  # the first from Pillow's writer
        return None, f"{_SKIPPED}: {error}"
    return encoded, f"converted: {wrong}" if wrong else ""


def _file_name(number: int) -> str:
    return f"{number:05d}.jpg"


def _pack(
    folder: pathlib.Path, ids: Sequence[str], request: Request, metadata: dict[str, Any], data_root: pathlib.Path
) -> None:
    """Has TFDS write what was collected."""
    import tensorflow_datasets as tfds

    from refine_jax.datasets.imagenet_builder import Imagenet50

    pictures: dict[str, list[list[tuple[str, pathlib.Path]]]] = {"train": [], "test": []}
    for name in ids:
        collected = read_json(folder / name / _LIST)
        files = [(taken, folder / name / _file_name(i)) for i, taken in enumerate(collected["taken"])]
        for split, (start, stop) in collected["places"].items():
            pictures[split].append(files[start:stop])
    builder = Imagenet50(
        pictures=pictures,
        ids=ids,
        facts=metadata,
        config=tfds.core.BuilderConfig(name=request.config_name, description=f"Built from {metadata['source']}"),
        data_dir=str(data_root),
        file_format=preparation.ARRAY_RECORD,
    )
    try:
        builder.download_and_prepare()
    except OSError:
        raise
    except Exception as error:  # from the writer of array_record, whose errors are of many kinds
        raise OSError(f"{request.folder(data_root)} cannot be written: {error}") from error
