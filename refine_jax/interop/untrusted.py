"""A file from a stranger: read within its bounds, and the limits that nothing in it may pass."""

import os
import stat
from typing import Any, BinaryIO, Self

import numpy as np

from refine_jax.errors import DataError

MIB = 1 << 20
MAX_FILE_BYTES = 4096 * MIB
# Everything that is not a tensor's data: a pickle and the objects made from it, or the header of a safetensors file.
MAX_PICKLE_BYTES = 128 * MIB
MAX_OBJECT_BYTES = 512 * MIB
MAX_HEADER_BYTES = 8 * MIB
MAX_ENTRIES = 100_000
MAX_DIRECTORY_BYTES = 16 * MIB
MAX_NESTING = 100
# Numbers as keys, whose hashes are no secret: so many may all be chosen to collide, which takes some ten seconds.
MAX_NUMBER_KEYS = 50_000
# Values and bytes that writing the outcome out would take, shared containers and arrays counted at each place.
MAX_VALUES = 10_000_000
MAX_REPETITION = 8
FREE_REPETITION_BYTES = 64 * MIB


class TorchFileError(DataError):
    """A file is damaged, of no format that is read, beyond a limit, or holds what is not read from a stranger."""


class UntrustedFile:
    """A regular file, read at given places and never past its end.

    Args:
        path: The file.
        max_bytes: What it may hold.

    Attributes:
        size: Its length in bytes.
        stream: The file as Python reads it.

    Raises:
        TorchFileError: It is no regular file, or larger than `max_bytes`.
        OSError: It cannot be opened.
    """

    def __init__(self, path: str | os.PathLike, max_bytes: int):
        # Looked at before it is opened, since opening a pipe waits for its other end.
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise TorchFileError("is no regular file")
        self.stream: BinaryIO = open(path, "rb")  # noqa: SIM115
        self.size = os.fstat(self.stream.fileno()).st_size
        if self.size > max_bytes:
            self.stream.close()
            raise TorchFileError(f"holds {self.size} bytes, more than max_bytes = {max_bytes}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stream.close()

    def read(self, offset: int, size: int) -> bytes:
        """Returns the `size` bytes at `offset`."""
        self._seek(offset, size)
        data = self.stream.read(size)
        if len(data) != size:
            raise TorchFileError("changed while it was read")
        return data

    def array(self, offset: int, size: int) -> np.ndarray:
        """Returns the `size` bytes at `offset` as an array of its own, uint8 [size]."""
        self._seek(offset, size)
        array = np.empty(size, np.uint8)
        self.fill(array)
        return array

    def fill(self, array: np.ndarray) -> None:
        """Fills a uint8 array with the bytes that follow."""
        if self.stream.readinto(array) != len(array):  # type: ignore[attr-defined]
            raise TorchFileError("ends in the middle of a tensor's data: copy or download it again")

    def _seek(self, offset: int, size: int) -> None:
        if offset < 0 or size < 0 or offset + size > self.size:
            raise TorchFileError(f"points to {shown(size)} bytes at {shown(offset)}, outside its {self.size} bytes")
        self.stream.seek(offset)


def shown(value: Any) -> str:
    """Returns a value from the file for a message: short, in ASCII, and a container by its type alone."""
    if value is not None and not isinstance(value, str | bytes | bool | int | float):
        return f"a {type(value).__name__}"
    if isinstance(value, str | bytes) and len(value) > 100:
        return f"{value[:100]!a}..."
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    return ascii(value)
