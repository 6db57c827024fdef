"""The pictures of a folder from a stranger as one array."""

import concurrent.futures
import os
import pathlib
import warnings
from collections.abc import Sequence

import numpy as np

from refine_jax.datasets import folder_files, pictures
from refine_jax.datasets.folder_files import Changes, shown
from refine_jax.errors import DataError, SettingError

# A picture may take 200 MB while it is decoded.
_THREADS = 4
_DECODED_AT_ONCE = 256


def read_pictures(
    place: pathlib.Path,
    files: Sequence[tuple[str, int]],
    image_size: int | None,
    changes: Changes,
    field: str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Decodes pictures; those that cannot be are left out and noted.

    Args:
        place: The folder.
        files: Paths below it, and the label of each.
        image_size: Side that pictures are brought to, see `pictures.decode`; None: they stay as they are.
        changes: Where to note them.
        field: Name of the setting that they are from, where they must be of one size; None: they are the data set's,
            whose image_size can make them so.

    Returns:
        (images uint8 [N, H, W, 3], labels int32 [N]).

    Raises:
        SettingError: There are several sizes in a data set, and none is asked for.
        DataError: There are several in another folder. Not one can be decoded, or they would not fit into memory.
    """
    images, labels, row, first = np.empty((0, 1, 1, 3), np.uint8), np.empty(len(files), np.int32), 0, ""

    def decode(path: str) -> tuple[np.ndarray, str] | str:
        try:
            file = place / path
            if file.stat().st_size > folder_files.MAX_FILE_BYTES:  # has grown since it was listed
                return "changed while it was read"
            return pictures.decode(file.read_bytes(), image_size)
        except pictures.UnreadableError as error:
            return str(error)
        except OSError as error:
            return str(error.strerror)

    with warnings.catch_warnings(), concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        warnings.simplefilter("ignore")  # Pillow's, of the files' metadata
        for start in range(0, len(files), _DECODED_AT_ONCE):
            batch = files[start : start + _DECODED_AT_ONCE]
            for (path, label), outcome in zip(batch, pool.map(decode, [path for path, _ in batch]), strict=True):
                if isinstance(outcome, str):
                    changes.note(path, "cannot be decoded", outcome)
                    continue
                picture, format_name = outcome
                if not row:
                    images, first = _allocate(len(files), picture.shape), path
                if picture.shape != images.shape[1:]:
                    sizes = [
                        f"{shown(p)} has {s[1]} x {s[0]}"
                        for p, s in ((first, images.shape[1:]), (path, picture.shape))
                    ]
                    if field is not None:
                        raise DataError(
                            f"{shown(place)} ({field}): pictures differ in size: {', '.join(sizes)} pixels"
                        )
                    allowed = f"a side to bring all pictures to, as they differ: {', '.join(sizes)} pixels"
                    raise SettingError("dataset.image_size", None, allowed)
                if not _suffix_fits(path, format_name):
                    changes.note(path, "taken, though its name says another format", format_name)
                images[row], labels[row] = picture, label
                row += 1
    if not row:
        raise DataError(f"{shown(place)}: not one of {len(files)} pictures can be decoded{changes.summary()}")
    return images[:row], labels[:row]


def _allocate(count: int, shape: tuple[int, ...]) -> np.ndarray:
    needed, there = count * int(np.prod(shape)), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there // 2:
        raise DataError(
            f"{count} pictures of {shape[1]} x {shape[0]} take {needed / 2**30:.1f} GiB, and this machine has "
            f"{there / 2**30:.1f}: give fewer, or a smaller dataset.image_size"
        )
    return np.empty((count, *shape), np.uint8)


def _suffix_fits(path: str, format_name: str) -> bool:
    suffix = path.lower().rpartition(".")[2]
    return suffix == format_name.lower() or (suffix in ("jpg", "jpeg") and format_name in ("JPEG", "MPO"))
