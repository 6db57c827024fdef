"""One run at a time in a working directory: a lock that knows its owner and goes with it, however that ends.

On one machine the operating system holds the lock for as long as its owner lives, so whoever gets it knows that the
owner before is gone. Where another machine shares the directory, that may not hold: there the owner's age tells, since
it touches the file every minute.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import pathlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from refine_jax.errors import WorkdirError

logger = logging.getLogger(__name__)


class InUse(WorkdirError):  # noqa: N818 - a state
    """Another process is at work in the directory."""


# Seconds between two touches, and after which an owner on another machine counts as gone.
_TOUCH, _GONE = 60.0, 600.0


@contextlib.contextmanager
def hold(path: pathlib.Path) -> Iterator[None]:
    """Holds a lock.

    Args:
        path: Of its file, which is deleted in the end.

    Raises:
        InUse: Another process holds it: which, since when, and when it was last heard of.
    """
    file, stopped = _acquire(path), threading.Event()
    try:
        threading.Thread(target=_touch, args=(file, stopped), daemon=True).start()
        yield
    finally:
        stopped.set()
        if _is_at(file, path):
            path.unlink()  # before it is let go: whoever waits for it then finds that this file is no lock any more
        os.close(file)


def _acquire(path: pathlib.Path) -> int:
    """Returns the file, opened and locked, with this process in it as the owner."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            locked = _lock(file)
            if locked is False or _is_at(file, path):
                _refuse_or_take_over(file, path, locked)
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _lock(file: int) -> bool | None:
    """Returns whether the lock was free; None where the file system knows no locks."""
    # Not flock: that one would pass to processes that are forked, and outlive this one with them.
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError as error:
        return False if error.errno in (errno.EACCES, errno.EAGAIN) else None


def _is_at(file: int, path: pathlib.Path) -> bool:
    """Returns whether the file still lies at `path`."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _refuse_or_take_over(file: int, path: pathlib.Path, locked: bool | None) -> None:
    owner, age = _read(file), time.time() - os.fstat(file).st_mtime
    here = owner.get("host") == socket.gethostname()
    said = (
        f"{path.parent} is in use by process {owner.get('pid', '?')} on {owner.get('host', '?')}, started at "
        f"{owner.get('started', '?')}, last heard of {max(0, age):.0f} s ago"
    )
    if locked is False or (owner and age < _GONE and not (here and locked)):
        raise InUse(f"{said}: wait for its end, or use another --workdir; if it is gone, delete {path}")
    if owner:
        logger.warning("%s; it is gone, and this run takes over", said)
    mine = {"pid": os.getpid(), "host": socket.gethostname(), "started": time.strftime("%Y-%m-%d %H:%M:%S %z")}
    os.ftruncate(file, 0)
    os.pwrite(file, json.dumps(mine).encode(), 0)


def _read(file: int) -> dict[str, Any]:
    """Returns who stands in the file; {} where nobody does."""
    try:
        owner = json.loads(os.pread(file, 4096, 0))
    except (ValueError, RecursionError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _touch(file: int, stopped: threading.Event) -> None:
    while not stopped.wait(_TOUCH):
        with contextlib.suppress(OSError):
            os.utime(file)
