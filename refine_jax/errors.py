"""Errors that a user can mend: one sentence that names what was given and what is allowed."""

import difflib
from collections.abc import Iterable


class RefineError(Exception):
    """Base of every error that launch.py prints as a sentence instead of a traceback."""


class SettingError(RefineError, ValueError):
    """A setting has a value that cannot work.

    Args:
        field: Dotted name of the setting, as it stands on the command line.
        value: The value that was given.
        allowed: What is allowed, as the end of the sentence "allowed: ...".
    """

    def __init__(self, field: str, value: object, allowed: str):
        self.field, self.value, self.allowed = field, value, allowed
        super().__init__(f"{field} = {value!r}: allowed: {allowed}")


class DataError(RefineError):
    """A data set is missing, incomplete or not what it should be."""


class WorkdirError(RefineError):
    """A working directory holds something other than what this run needs."""


class StorageError(RefineError):
    """Something cannot be written, or not be read at the moment: the disk is full, or will not."""


def choose(field: str, value: str, names: Iterable[str]) -> str:
    """Returns `value` where it is one of `names`, else raises with the names and the nearest one.

    Raises:
        SettingError: `value` is none of `names`.
    """
    names = tuple(names)
    if value in names:
        return value
    raise SettingError(field, value, ", ".join(names) + did_you_mean(value, names))


def did_you_mean(value: str, names: Iterable[str]) -> str:
    """Returns " (did you mean 'name'?)" for the nearest of `names`, or "" where none is near."""
    near = difflib.get_close_matches(str(value), list(names), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
