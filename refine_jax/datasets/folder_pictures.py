"""The pictures of a folder from a stranger as one array."""

import collections
import concurrent.futures
import pathlib
import warnings
from collections.abc import Iterator, Sequence

import numpy as np

from refine_jax.datasets import folder_files, memory, pictures
from refine_jax.datasets.folder_files import Changes, shown
from refine_jax.errors import DataError, SettingError

# A picture may take 200 MB, so that no more are held than are being decoded.
_THREADS = 4


def read_pictures(
    place: pathlib.Path,
    files: Sequence[tuple[str, int]],
    image_size: int | None,
    changes: Changes,
    field: str | None = None,
    together: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Decodes pictures; those that cannot be are left out and noted.

    Args:
        place: The folder.
        files: Paths below it, and the label of each.
        image_size: Side that pictures are brought to, see `pictures.decode`; None: they stay as they are.
        changes: Where to note them.
        field: Name of the setting that they are from, where they must be of one size; None: they are the data set's,
            whose image_size can make them so.
        together: How many pictures of their size there must be memory for, these among them; None: for these.

    Returns:
        (images uint8 [N, H, W, 3], labels int32 [N]).

    Raises:
        SettingError: There are several sizes in a data set, and none is asked for.
        DataError: There are several in another folder. Not one can be decoded, or they would not fit into memory.
        StorageError: One cannot be read at the moment.
    """
    images, labels, row, first = np.empty((0, 1, 1, 3), np.uint8), np.empty(len(files), np.int32), 0, ""
    with warnings.catch_warnings(), concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        warnings.simplefilter("ignore")  # Pillow's, of the files' metadata
        outcomes = _decode_all(pool, place, files, image_size)
        for (path, label), outcome in zip(files, outcomes, strict=True):
            if isinstance(outcome, str):
                changes.note(path, "cannot be decoded", outcome)
                continue
            picture = outcome.pixels
            if not row:
                images, first = _allocate(len(files), picture.shape, together or len(files)), path
            if picture.shape != images.shape[1:]:
                sizes = [
                    f"{shown(p)} has {s[1]} x {s[0]}" for p, s in ((first, images.shape[1:]), (path, picture.shape))
                ]
                if field is not None:
                    raise DataError(f"{shown(place)} ({field}): pictures differ in size: {', '.join(sizes)} pixels")
                allowed = f"a side to bring all pictures to, as they differ: {', '.join(sizes)} pixels"
                raise SettingError("dataset.image_size", None, allowed)
            if not _suffix_fits(path, outcome.format):
                changes.note(path, "taken, though its name says another format", outcome.format)
            for what in outcome.ignored:
                changes.note(path, what)
            images[row], labels[row] = picture, label
            row += 1
    if not row:
        raise DataError(f"{shown(place)}: not one of {len(files)} pictures can be decoded{changes.summary()}")
    return images[:row], labels[:row]


def _decode_all(
    pool: concurrent.futures.Executor,
    place: pathlib.Path,
    files: Sequence[tuple[str, int]],
    image_size: int | None,
) -> Iterator[pictures.Decoded | str]:
    """What `_decode` returns of each file, in their order; the next is begun when one is asked for."""
    waiting: collections.deque[concurrent.futures.Future[pictures.Decoded | str]] = collections.deque()
    for path, _ in files:
        waiting.append(pool.submit(_decode, place / path, image_size))
        if len(waiting) == _THREADS:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _decode(file: pathlib.Path, image_size: int | None) -> pictures.Decoded | str:
    """A picture, or why it is none: of what the file holds alone, since that is kept."""
    try:
        if file.stat().st_size > folder_files.MAX_FILE_BYTES:  # has grown since it was listed
            return "changed while it was read"
        encoded = file.read_bytes()
    except OSError as error:
        raise folder_files.unreadable(file, error) from error
    try:
        return pictures.decode(encoded, image_size)
    except pictures.UnreadableError as error:
        return str(error)
    except MemoryError as error:
        raise DataError(f"{shown(file)}: there is too little memory to decode it") from error


def _allocate(count: int, shape: tuple[int, ...], together: int) -> np.ndarray:
    needed, there = together * int(np.prod(shape)), memory.of_machine()
    if needed > there // 2:
        raise DataError(
            f"{together} pictures of {shape[1]} x {shape[0]} take {needed / 2**30:.1f} GiB, and of this machine's "
            f"memory {there / 2**30:.1f} can be had: give fewer, or a smaller dataset.image_size"
        )
    return np.empty((count, *shape), np.uint8)


def _suffix_fits(path: str, format_name: str) -> bool:
    suffix = path.lower().rpartition(".")[2]
    return suffix == format_name.lower() or (suffix in ("jpg", "jpeg") and format_name in ("JPEG", "MPO"))
