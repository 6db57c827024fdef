"""How a program ends: the sentence that an error comes to, and the exit status."""

import errno
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable
from typing import NoReturn

from refine_jax.errors import RefineError, StorageError

STATUS_BUG, STATUS_ERROR, STATUS_STORAGE, STATUS_INTERRUPTED = 1, 2, 74, 75
STATUS_STOPPED = 130  # with nothing to go on from

# What a file system may answer to somebody who writes, through no fault of the program.
_REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE}


def quieten(handler: logging.Handler) -> None:
    """Keeps from people what threads of Orbax and TensorStore have to say of an error, with tracebacks.

    It is raised in the main thread too, and said there in a sentence.

    Args:
        handler: Of the program's log.
    """
    handler.addFilter(lambda record: not record.exc_info)
    sys.unraisablehook = _report


def _report(unraisable: "sys.UnraisableHookArgs") -> None:
    if threading.current_thread() is threading.main_thread():
        sys.__unraisablehook__(unraisable)


def explain(error: BaseException, workdir: str | os.PathLike | None) -> tuple[str, int]:
    """Returns what an error comes to: (what to say, the exit status).

    What a user can mend is a sentence; anything else is a bug and keeps its traceback.

    Args:
        error: That ended the program, other than `Interrupted`, which says itself what was saved.
        workdir: The working directory, for an error of the file system that names no file.
    """
    if isinstance(error, KeyboardInterrupt):
        return "stopped; stages that are done stay done, and the same command goes on", STATUS_INTERRUPTED
    if isinstance(error, StorageError):
        return f"error: {error}", STATUS_STORAGE
    if isinstance(error, RefineError):
        return f"error: {error}", STATUS_ERROR
    if isinstance(error, OSError) and error.errno in _REFUSALS:
        file = error.filename or workdir
        return f"error: {file}: {error.strerror}; what was saved before is whole", STATUS_STORAGE
    return "".join(traceback.format_exception(error)).rstrip(), STATUS_BUG


def leave_at_once(status: int) -> NoReturn:
    """Ends the process without what the interpreter does at its end.

    After Ctrl-C the device may still be at work on what was asked of it. A run that was stopped right before its
    first step was seen to end so with a segmentation fault, after everything was said, instead of its status.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)


def print_outcome(command: Callable[[], object]) -> int:
    """Prints what a command returns, or in a sentence why it returns nothing; returns the exit status.

    Args:
        command: That leaves nothing half done, so that there is nothing to go on from.
    """
    try:
        print(command())
        return 0
    except RefineError as error:
        said, status = f"error: {error}", STATUS_ERROR
    except OSError as error:
        said, status = f"error: {error.filename}: {error.strerror}", STATUS_STORAGE
    except KeyboardInterrupt:
        said, status = "stopped", STATUS_STOPPED
    print(said, file=sys.stderr)
    return status
