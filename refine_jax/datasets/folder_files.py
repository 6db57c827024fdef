"""Which pictures a folder from a stranger has, and what was left out and why: looked at, not yet opened."""

import dataclasses
import logging
import os
import pathlib
import stat
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from refine_jax.errors import DataError, StorageError

logger = logging.getLogger(__name__)

SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".ppm", ".webp")
MAX_FILE_BYTES = 1 << 26
MAX_FILES = 2_000_000
_MAX_DEPTH = 8
# So many are listed by name, and told in the log; all are counted.
_LISTED, _TOLD = 10_000, 3


class Changes:
    """What was not taken as it is: counts by reason, and names."""

    def __init__(self):
        self.counts: dict[str, int] = {}
        self.files: list[list[str]] = []

    def note(self, path: str | os.PathLike, what: str, detail: str = "") -> None:
        """Notes a file.

        Args:
            path: Its name, whatever characters it has.
            what: A sentence that many files may share.
            detail: What is this file's own.
        """
        self.counts[what] = self.counts.get(what, 0) + 1
        if len(self.files) < _LISTED:
            self.files.append([shown(path), f"{what}: {detail}" if detail else what])

    def add(self, others: Mapping[str, Any]) -> None:
        """Notes what `to_json` of others has given."""
        for what, count in others["counts"].items():
            self.counts[what] = self.counts.get(what, 0) + count
        self.files = (self.files + others["files"])[:_LISTED]

    def to_json(self) -> dict[str, Any]:
        """Returns the counts, and as many names as are kept."""
        return {"counts": self.counts, "files": self.files}

    def tell(self, prefix: str) -> None:
        """Says in the log how many files were not taken as they are, with a few names."""
        for what, count in self.counts.items():
            names = [path for path, why in self.files if why.startswith(what)][:_TOLD]
            more = ", ..." if count > len(names) else ""
            logger.warning("%s: %d files: %s (%s%s)", prefix, count, what, ", ".join(names), more)

    def summary(self) -> str:
        """Returns the counts as the end of an error's sentence; "" where there are none."""
        counts = [f"{count} files, {what}" for what, count in self.counts.items()]
        return f"; left out: {'; '.join(counts)}" if counts else ""


@dataclasses.dataclass(frozen=True)
class Tree:
    """Pictures of one folder.

    Attributes:
        place: The folder.
        classes: Names of its class folders, sorted; none where pictures lie in it directly.
        files: Paths below `place`, sorted, and the position in `classes` of each; 0 where there are none.
        links: Those of the files that are links, and the paths below `place` of what they lead to.
    """

    place: pathlib.Path
    classes: tuple[str, ...]
    files: tuple[tuple[str, int], ...]
    links: Mapping[str, str] = dataclasses.field(default_factory=dict)


def read_tree(place: pathlib.Path, changes: Changes, field: str) -> Tree:
    """Lists the pictures of a folder: its own, or those of its class folders and of the folders in these.

    Names that begin with a dot are passed over. A file counts where it is a regular one and its suffix is one of
    `SUFFIXES`; a link counts where it leads to such a file within the folder, and no link to a folder is followed.

    Args:
        place: The folder.
        changes: Where the files that are left out are noted.
        field: Name of the setting that it is from.

    Raises:
        DataError: It cannot be read, has pictures beside class folders, a class folder without a picture, one that is
            a link beside others that are not, one whose name cannot be printed, two of one name, or more than
            `MAX_FILES` files.
    """
    try:
        entries = _entries(os.fspath(place))
    except OSError as error:
        raise DataError(f"{shown(place)}: cannot be read: {error.strerror}") from error
    root = os.path.realpath(place)
    walk = _Walk(root, changes)
    loose = [entry.name for entry in entries if walk.takes_file(entry, entry.name)]
    folders = [entry for entry in entries if walk.is_folder(entry, entry.name)]
    by_class = {folder.name: walk.below(folder) for folder in folders}
    if loose and any(by_class.values()):
        raise DataError(
            f"{shown(place)} ({field}) has {len(loose)} pictures beside {len(folders)} folders of pictures: class "
            "folders alone are taken, or pictures alone"
        )
    if loose:
        return Tree(place, (), tuple((name, 0) for name in sorted(loose)), walk.links)
    linked = [entry.name for entry in entries if entry.is_symlink() and _is(entry, stat.S_ISDIR)]
    _check_classes(place, field, by_class, linked if by_class else [])
    classes = tuple(sorted(by_class))
    files = tuple((file, label) for label, name in enumerate(classes) for file in sorted(by_class[name]))
    return Tree(place, classes, files, walk.links)


def _check_classes(place: pathlib.Path, field: str, by_class: Mapping[str, list[str]], linked: list[str]) -> None:
    """Refuses class folders that would leave a class out or count one twice; `linked` has those that are links."""
    if linked:
        raise DataError(
            f"{shown(place)} ({field}): the class folder {shown(linked[0])} is a link, and none to a folder is "
            "followed: put the folder itself there, or remove the link; the other classes' numbers would depend on it"
        )
    spelled: dict[str, str] = {}
    for name, found in by_class.items():
        if (other := spelled.setdefault(composed(name), name)) != name:
            raise DataError(
                f"{shown(place)} ({field}): the class folders {shown(other)} and {shown(name)} have one name, in two "
                "encodings: make one folder of them"
            )
        if not name.isprintable():
            raise DataError(f"{shown(place)} ({field}): the class folder {shown(name)} has a name that is no text")
        if not found:
            raise DataError(
                f"{shown(place)} ({field}): the class folder {shown(name)} holds no picture: remove it, or put the "
                "pictures in; the other classes' numbers would depend on it"
            )


def folders(place: pathlib.Path) -> list[str]:
    """Returns the names of the folders in a folder, sorted; a link to one counts.

    Raises:
        DataError: It cannot be read.
    """
    try:
        return [entry.name for entry in _entries(os.fspath(place)) if _is(entry, stat.S_ISDIR)]
    except OSError as error:
        raise DataError(f"{shown(place)}: cannot be read: {error.strerror}") from error


def of_pictures(place: pathlib.Path, names: Sequence[str]) -> list[str]:
    """Returns those of the folders in a folder that hold a picture and are no links, as `read_tree` would see it."""
    walk = _Walk(os.path.realpath(place), Changes())
    entries = [entry for entry in _entries(os.fspath(place)) if entry.name in names]
    return [entry.name for entry in entries if walk.is_folder(entry, entry.name) and walk.below(entry)]


def inside(place: pathlib.Path, name: str) -> pathlib.Path:
    """Returns a folder of this name within a folder.

    Raises:
        DataError: It is a link that leads out.
    """
    path = place / name
    if not is_below(path, place):
        raise DataError(f"{shown(path)} is a link that leads out of the folder: give what it leads to")
    return path


def is_below(path: str | os.PathLike, place: str | os.PathLike) -> bool:
    """Returns whether a file or folder lies in a folder, or is this folder, wherever links lead."""
    root = os.path.realpath(place)
    return os.path.commonpath([os.path.realpath(path), root]) == root


def composed(name: str) -> str:
    """Returns the name of a class as it is compared: macOS, archives and editors write an accent in two ways."""
    return unicodedata.normalize("NFC", name)


def unreadable(path: str | os.PathLike, error: OSError) -> StorageError:
    """Returns what to raise where a file cannot be read, which says nothing of what is in it."""
    return StorageError(
        f"{shown(path)} cannot be read now ({error.strerror or error}): mend that, or take it out of the folder; the "
        "same command tries again"
    )


def shown(path: str | os.PathLike) -> str:
    """Returns a name for a message, in ASCII and not too long."""
    text = ascii(os.fspath(path))[1:-1]
    return text if len(text) <= 200 else f"{text[:100]}...{text[-90:]}"


class _Walk:
    """Looks at the files below one folder, and notes those that are left out.

    Attributes:
        links: As in `Tree`.
    """

    def __init__(self, root: str, changes: Changes):
        self.links: dict[str, str] = {}
        self._root, self._changes, self._count = root, changes, 0

    def below(self, folder: os.DirEntry) -> list[str]:
        """Paths of the pictures in a folder and the folders in it, from the root's place on."""
        found, waiting = [], [(folder.path, folder.name, 1)]
        while waiting:
            path, name, depth = waiting.pop()
            try:
                entries = _entries(path)
            except OSError as error:
                self._changes.note(name, "a folder that cannot be read", str(error.strerror))
                continue
            for entry in entries:
                below = f"{name}/{entry.name}"
                if self.is_folder(entry, below):
                    if depth < _MAX_DEPTH:
                        waiting.append((entry.path, below, depth + 1))
                    else:
                        self._changes.note(below, f"a folder more than {_MAX_DEPTH} deep")
                elif self.takes_file(entry, below):
                    found.append(below)
        return found

    def is_folder(self, entry: os.DirEntry, name: str) -> bool:
        """Whether it is a folder, and no link to one."""
        if not _is(entry, stat.S_ISDIR):
            return False
        if entry.is_symlink():
            self._changes.note(name, "a link to a folder")
            return False
        return True

    def takes_file(self, entry: os.DirEntry, name: str) -> bool:
        """Whether it is a file to be opened."""
        self._count += 1
        if self._count > MAX_FILES:
            raise DataError(f"{shown(self._root)} has more than {MAX_FILES} files")
        if _is(entry, stat.S_ISDIR):
            return False
        reason = self._against(entry)
        if reason:
            self._changes.note(name, reason)
        elif entry.is_symlink():
            self.links[name] = os.path.relpath(os.path.realpath(entry.path), self._root)
        return not reason

    def _against(self, entry: os.DirEntry) -> str:
        """Why a file is left out; "" where it is not."""
        try:
            if entry.is_symlink() and not is_below(entry.path, self._root):
                return "a link that leads out of the folder"
            status = entry.stat()
        except OSError:
            return "a link that leads nowhere" if entry.is_symlink() else "cannot be read"
        if not stat.S_ISREG(status.st_mode):
            return "no regular file"
        if not entry.name.lower().endswith(SUFFIXES):
            return f"no picture by its name (not {' '.join(SUFFIXES)})"
        if status.st_size > MAX_FILE_BYTES:
            return f"more than {MAX_FILE_BYTES >> 20} MiB"
        return "" if status.st_size else "an empty file"


def _entries(path: str) -> list[os.DirEntry]:
    with os.scandir(path) as entries:
        return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)


def _is(entry: os.DirEntry, kind) -> bool:
    try:
        return kind(entry.stat().st_mode)
    except OSError:
        return False
