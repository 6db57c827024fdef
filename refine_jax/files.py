"""Files that are written whole or not at all, and hashes of what they hold."""

import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO

import jax
import numpy as np

from refine_jax.errors import WorkdirError

# Of the checksum in a record.
_SUM = "file_sha256"


def read_json(path: pathlib.Path) -> Any:
    """Returns what a JSON file holds.

    Raises:
        WorkdirError: It cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise WorkdirError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise WorkdirError(f"{path} is damaged ({error}): delete the folder that it is in") from error


def read_record(path: pathlib.Path, fields: Iterable[str]) -> dict[str, Any]:
    """Returns what `write_record` has written.

    Args:
        path: Of the file.
        fields: The names of what it holds, where it has no checksum: the first versions wrote none.

    Raises:
        WorkdirError: It cannot be read, or is not what was written.
    """
    record = read_json(path)
    if not isinstance(record, dict):
        raise WorkdirError(f"{path} is damaged (no JSON object): delete the folder that it is in")
    wanted = record.pop(_SUM, None)
    if wanted != hash_json(record) if wanted is not None else {*record} != {*fields}:
        raise WorkdirError(f"{path} is damaged (it is not what was written): delete the folder that it is in")
    return record


def write_record(path: pathlib.Path, record: Mapping[str, Any]) -> None:
    """Writes a JSON object with the SHA-256 of all that it says, so that damage is noticed."""
    write_json(path, {**record, _SUM: hash_json(record)})


def hash_json(record: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of a JSON object, in whatever order its fields are."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes JSON, whole or not at all."""
    with _replacing(path) as file:
        file.write((json.dumps(value, indent=2) + "\n").encode())


def write_arrays(path: pathlib.Path, arrays: Mapping[str, Any]) -> None:
    """Writes a .npz, whole or not at all."""
    with _replacing(path) as file:
        np.savez_compressed(file, **arrays)


@contextlib.contextmanager
def _replacing(path: pathlib.Path) -> Iterator[BinaryIO]:
    """Gives a file beside `path` to write to, and moves it there once it is whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # else a loss of power may leave an empty file under the name
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def hash_arrays(tree: Any) -> str:
    """Returns the SHA-256 of a tree of arrays: their places in it, types, shapes and values."""
    digest = hashlib.sha256()
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    for path in sorted(leaves):
        leaf = np.asarray(leaves[path])
        digest.update(f"{path} {leaf.dtype.str} {leaf.shape}".encode())
        # The bytes where they lie: a copy of a data set may be more than there is memory for.
        digest.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
