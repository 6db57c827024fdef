"""A folder of files with a manifest of their hashes: written whole or not at all, altered files known by name."""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from refine_jax.errors import DataError, WorkdirError
from refine_jax.files import write_json

MANIFEST = "manifest.json"
_PARTIAL, _OLD = ".partial", ".old"


@contextlib.contextmanager
def writing(directory: pathlib.Path, manifest: Mapping[str, Any]) -> Iterator[pathlib.Path]:
    """Gives a folder to write files into, which becomes `directory`, manifest and all, once they are written.

    Until then it lies beside it under another name, and an earlier folder stays in its place.

    Args:
        directory: A folder that is there already is replaced, where `require_own` has nothing against it.
        manifest: JSON values; the files, each with its SHA-256 and its size, are added under 'files'.

    Raises:
        WorkdirError: `directory` is not of this program, or cannot be written.
    """
    directory = directory.expanduser().absolute()
    require_own(directory)
    folder = directory.with_name(f".{directory.name}{_PARTIAL}")
    shutil.rmtree(folder, ignore_errors=True)  # of a process that died
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise WorkdirError(f"{directory} cannot be written: {error.strerror}") from error
    try:
        yield folder
        files = {
            path.relative_to(folder).as_posix(): {"sha256": _hash(path), "bytes": path.stat().st_size}
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        write_json(folder / MANIFEST, {**manifest, "files": files})
        _replace(folder, directory)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def require_own(directory: pathlib.Path) -> None:
    """Refuses a folder that this program has not written: without a manifest, or folders that have each their own.

    Raises:
        WorkdirError: It is such a one, or a file.
    """
    if not directory.exists() or _has_manifest(directory):
        return
    parts = [path for path in directory.iterdir() if not _is_rest(path)] if directory.is_dir() else [directory]
    if not all(map(_has_manifest, parts)):
        raise WorkdirError(f"{directory} is there and has no {MANIFEST}, so it is not of this program: move it away")


def read_manifest(directory: pathlib.Path, schema: int) -> dict[str, Any]:
    """Returns the manifest of a folder, its form checked, the files not yet.

    Args:
        directory: That `writing` made.
        schema: That the manifest must have.

    Raises:
        DataError: There is none, it is damaged, or it is of another schema.
    """
    path = directory / MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except OSError as error:
        raise DataError(f"{directory} holds no export: {path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged ({error}): export again") from error
    if not isinstance(manifest, dict) or manifest.get("schema") != schema:
        found = manifest.get("schema") if isinstance(manifest, dict) else None
        raise DataError(f"{path} has the schema {found!r}, and this program reads {schema}: export again")
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(map(_is_entry, files.items())):
        raise DataError(f"{path} is damaged (its files are not each a path with sha256 and bytes): export again")
    return manifest


def holds(directory: pathlib.Path, schema: int, entries: Mapping[str, Any]) -> bool:
    """Returns whether a folder is there and whole, with a manifest of a schema that has these entries."""
    try:
        manifest = read_manifest(directory, schema)
        check(directory, manifest)
    except DataError:
        return False
    return all(manifest.get(name) == value for name, value in entries.items())


def read_file(directory: pathlib.Path, manifest: Mapping[str, Any], name: str) -> bytes:
    """Returns what a file of the folder holds, if that is what the manifest says.

    Raises:
        DataError: The file is missing, altered or not in the manifest.
    """
    if name not in manifest["files"]:
        raise DataError(f"{directory / MANIFEST} names no file {name}: export again")
    expected, path = manifest["files"][name], directory / name
    try:
        # Its size first: a file that has grown is not read.
        data = path.read_bytes() if path.stat().st_size == expected["bytes"] else None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): export again, or copy all of it") from error
    if data is None or hashlib.sha256(data).hexdigest() != expected["sha256"]:
        raise DataError(f"{path} was altered: it is not the file whose SHA-256 stands in {MANIFEST}")
    return data


def check(directory: pathlib.Path, manifest: Mapping[str, Any], name: str = ".") -> None:
    """Holds all files of the folder, or of a folder in it, to the manifest: none may be missing, altered or added.

    Raises:
        DataError: One is; which.
    """
    paths = [path.relative_to(directory) for path in (directory / name).rglob("*") if not path.is_dir()]
    found = {path.as_posix() for path in paths} - {MANIFEST}
    wanted = {file for file in manifest["files"] if name in (".", file.partition("/")[0])}
    for file in sorted(found - wanted):
        raise DataError(f"{directory / file} was added: {MANIFEST} names no such file")
    for file in sorted(wanted):
        read_file(directory, manifest, file)


def _is_entry(item: tuple[str, Any]) -> bool:
    """Whether an item of 'files' has its form, and names nothing outside of the folder."""
    name, entry = item
    path = pathlib.PurePosixPath(name)
    inside = name == str(path) and not path.is_absolute() and ".." not in path.parts and "\0" not in name
    fields = {"sha256": str, "bytes": int}
    return inside and isinstance(entry, dict) and all(isinstance(entry.get(f), kind) for f, kind in fields.items())


def _has_manifest(directory: pathlib.Path) -> bool:
    return (directory / MANIFEST).is_file()


def _is_rest(path: pathlib.Path) -> bool:
    """Whether it is what a process has left that died while it wrote a folder."""
    return path.name.startswith(".") and path.suffix in (_PARTIAL, _OLD)


def _hash(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _replace(folder: pathlib.Path, directory: pathlib.Path) -> None:
    """Moves a folder to its place; what stood there is deleted once it is out of the way."""
    if not directory.exists():
        os.rename(folder, directory)
        return
    old = directory.with_name(f".{directory.name}{_OLD}")
    shutil.rmtree(old, ignore_errors=True)
    os.rename(directory, old)
    os.rename(folder, directory)
    shutil.rmtree(old, ignore_errors=True)
