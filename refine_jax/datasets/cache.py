"""Decoded images on disk: decoded once, mapped into memory from then on.

An entry is a folder of .npy files and a manifest. It is written beside its place and moved there as a whole, so
that it is either there and complete or not there, whoever is interrupted and however many write at once.
"""

import contextlib
import hashlib
import json
import logging
import os
import pathlib
import re
import shutil
import time
import uuid
import zlib
from collections.abc import Callable, Iterable

import numpy as np

logger = logging.getLogger(__name__)

# Counted up when what an entry holds changes its meaning; older entries are then not looked at any more.
_FORMAT = 1
_MANIFEST = "manifest.json"
# What is summed of a file when it is opened: all of one under 256 MiB, as much of a larger one, evenly spread.
_BLOCK, _BLOCKS = 2**20, 256
# What a killed process has left of an entry, and how many seconds nobody has written to it for that to be sure.
_PART, _ABANDONED = re.compile(r"\..+-v\d+\.[0-9a-f]{32}(\.damaged)?"), 24 * 3600
# What opening an entry raises that is not whole.
_DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError)


def directory(cache_dir: str | os.PathLike | None = None) -> pathlib.Path:
    """Returns where entries lie: `cache_dir`, else $REFINE_JAX_CACHE, else refine_jax in the user's cache folder."""
    if cache_dir or os.environ.get("REFINE_JAX_CACHE"):
        path = pathlib.Path(cache_dir or os.environ["REFINE_JAX_CACHE"])
    else:
        path = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "refine_jax")
    return path.expanduser().absolute()


def fingerprint(folder: pathlib.Path, contents: Iterable[str] = ()) -> str:
    """Returns a short hash that changes when a file of a folder does.

    Args:
        folder: Of the files, not of those in folders below it.
        contents: Names of small files that count with all they hold. Of every file count its name, its size
            and the time it was changed.

    Raises:
        OSError: The folder or a file of `contents` cannot be read.
    """
    files = sorted((path.name, path.stat()) for path in folder.iterdir() if path.is_file())
    facts = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in files]
    facts += [[name, hashlib.sha256((folder / name).read_bytes()).hexdigest()] for name in contents]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def load_or_build(
    name: str,
    key: str,
    build: Callable[[], dict[str, np.ndarray]],
    cache_dir: str | os.PathLike | None = None,
) -> dict[str, np.ndarray]:
    """Returns the arrays of an entry; builds and keeps them where it is not there or damaged.

    Args:
        name: What the entry is, for people.
        key: Fingerprint of what the arrays are built from.
        build: Returns the arrays; only called where they are not kept.
        cache_dir: Where entries lie; None: see `directory`. Where it cannot be written, a warning is logged
            and the arrays stay in memory.

    Returns:
        The arrays, read-only, mapped from the files where that is possible.
    """
    entry = directory(cache_dir) / f"{name}-{key}-v{_FORMAT}"
    arrays = _read(entry)
    if arrays is not None:
        return arrays
    built = build()
    try:
        _write(entry, built)
        arrays = _read(entry)
    except OSError as error:
        logger.warning("%s: decoded images cannot be kept there and will be decoded at every start: %s", entry, error)
    if arrays is None:
        arrays = built
        for array in arrays.values():
            array.flags.writeable = False
    return arrays


def _read(entry: pathlib.Path) -> dict[str, np.ndarray] | None:
    """Maps the arrays of an entry; None where it is not there, or damaged, which the log then says."""
    if not os.path.lexists(entry):
        return None
    try:
        return _open(entry)
    except _DAMAGED as error:
        logger.warning("%s: damaged, images are decoded anew: %s", entry, error)
        return None


def _open(entry: pathlib.Path) -> dict[str, np.ndarray]:
    """Maps the arrays of an entry, or raises one of _DAMAGED."""
    arrays = {}
    for name, facts in json.loads((entry / _MANIFEST).read_text())["arrays"].items():
        path = entry / f"{name}.npy"
        if _facts(path) != facts:
            raise ValueError(f"{path.name} is not what was written")
        arrays[name] = np.load(path, mmap_mode="r", allow_pickle=False)
    return arrays


def _write(entry: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    part = entry.parent / f".{entry.name}.{uuid.uuid4().hex}"
    part.mkdir(parents=True)
    try:
        _remove_abandoned(entry.parent)
        facts = {}
        for name, array in arrays.items():
            path = part / f"{name}.npy"
            with path.open("wb") as file:
                np.save(file, array)
                file.flush()
                os.fsync(file.fileno())  # else a loss of power may leave a file of the right size full of zeros
            facts[name] = _facts(path)
        (part / _MANIFEST).write_text(json.dumps({"arrays": facts}, indent=2) + "\n")
        _move(part, entry)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _move(part: pathlib.Path, entry: pathlib.Path) -> None:
    """Moves a folder to its place, unless another process has already put a good one there."""
    try:
        os.replace(part, entry)
        return
    except OSError:
        if not os.path.lexists(entry):
            raise
    try:
        _open(entry)
    except _DAMAGED:
        damaged = part.with_name(f"{part.name}.damaged")
        os.replace(entry, damaged)
        os.replace(part, entry)
        _remove(damaged)


def _remove_abandoned(folder: pathlib.Path) -> None:
    """Removes what killed processes have left of any entry: each may be as large as a data set."""
    for name in os.listdir(folder):
        path = folder / name
        if not _PART.fullmatch(name):
            continue
        with contextlib.suppress(OSError):  # another process removes it, too, or it is another user's
            files: Iterable[pathlib.Path] = path.iterdir() if path.is_dir() else ()
            if time.time() - max(file.lstat().st_mtime for file in (path, *files)) > _ABANDONED:
                _remove(path)


def _remove(path: pathlib.Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _facts(path: pathlib.Path) -> dict[str, int]:
    """Returns the size and a checksum of a file; cheap enough for every start."""
    size = path.stat().st_size
    checksum = 0
    with path.open("rb") as file:
        for start in range(0, size, max(_BLOCK, -(-size // _BLOCKS))):
            file.seek(start)
            checksum = zlib.crc32(file.read(_BLOCK), checksum)
    return {"bytes": size, "crc32": checksum}
