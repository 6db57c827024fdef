"""Answers of a victim by the image that it was shown, in a file that is only ever added to.

    a line of JSON that says of which oracle it is; then records of one length:
    digest of the image [16 bytes] | number of the call that answered it [4] | answer [4 each] | CRC-32 of all that [4]

A process that dies while it writes leaves a torn record at the end; it is cut off when the file is opened again. A
record that is damaged is left out, and its image is asked again.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from refine_jax.errors import StorageError, WorkdirError

logger = logging.getLogger(__name__)

DIGEST_BYTES = 16
_FORMAT = "refine-jax answers 1"


class AnswerCache:
    """Image to answer, in memory and, where a path is given, in a file beside.

    Args:
        path: Of the file, made where it is not there; None: memory alone.
        width: Numbers in an answer.
        identity: What must be the same for answers to be of use; JSON values.

    Raises:
        WorkdirError: The file is of another oracle, is no such file, or is in use.
        StorageError: It cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str] | None, width: int, identity: Mapping[str, Any]):
        self._record = np.dtype(
            [("digest", f"V{DIGEST_BYTES}"), ("call", "<u4"), ("answer", "<f4", (width,)), ("crc", "<u4")]
        )
        self._places: dict[bytes, int] = {}
        self._answers = np.empty((1024, width), np.float32)
        self.calls = self._last_call = 0  # how many are known, and the number of the last
        self._file: BinaryIO | None = None
        if path is not None:
            self.path = pathlib.Path(path)
            self._open(json.dumps({"format": _FORMAT, **identity}, sort_keys=True).encode() + b"\n")

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._places

    def get(self, digests: list[bytes]) -> np.ndarray:
        """Returns the answers to images that are all known.  float32 [N, width]"""
        return self._answers[[self._places[digest] for digest in digests]]

    def add(self, digests: list[bytes], answers: np.ndarray) -> None:
        """Keeps what one call has answered; it is on the disk when this returns.

        Args:
            digests: Of the images, each of which was unknown. [N]
            answers: float32 [N, width]

        Raises:
            StorageError: It cannot be written; it is known as long as the process lives.
        """
        self.calls += 1
        self._last_call += 1
        self._remember(digests, answers)
        if self._file is None:
            return
        records = np.zeros(len(digests), self._record)
        records["digest"] = np.frombuffer(b"".join(digests), f"V{DIGEST_BYTES}")
        records["call"], records["answer"] = self._last_call, answers
        records["crc"] = [_crc(record) for record in records]
        whole, left = os.fstat(self._file.fileno()).st_size, records.tobytes()
        try:
            while left:  # a disk that is almost full takes a part, and says so by its length alone
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(whole)  # records after half of one would not be found again
            raise StorageError(f"{self.path} cannot be written: {error.strerror}") from error

    def close(self) -> None:
        """Lets go of the file."""
        if self._file is not None:
            self._file.close()

    def _remember(self, digests: list[bytes], answers: np.ndarray) -> None:
        first = len(self._places)
        while first + len(digests) > len(self._answers):
            self._answers = np.concatenate([self._answers, np.empty_like(self._answers)])
        self._answers[first : first + len(digests)] = answers
        self._places.update((digest, first + i) for i, digest in enumerate(digests))

    def _open(self, header: bytes) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self._file = self.path.open("a+b", buffering=0)
        except OSError as error:
            raise StorageError(f"{self.path} cannot be written: {error.strerror}") from error
        try:
            # Not lockf, whose lock a process loses as soon as it closes the file a second time.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):  # others: a file system that knows no locks
                file.close()
                raise WorkdirError(
                    f"{self.path} is in use: another oracle adds to it; close that one first"
                ) from error
        file.seek(0)
        there = file.read()
        if header.startswith(there):  # nothing, or a header that was torn
            file.truncate(0)
            file.write(header)
            return
        if not there.startswith(header):
            file.close()
            found = there.partition(b"\n")[0].decode(errors="replace")
            raise WorkdirError(f"{self.path} holds answers of another oracle: {found:.300}; this one is {header!r}")
        size = self._record.itemsize
        whole = (len(there) - len(header)) // size
        records = np.frombuffer(there, self._record, whole, len(header))
        fine = np.array([_crc(record) == record["crc"] for record in records], bool)
        torn = len(there) - len(header) - whole * size
        if torn or not fine.all():
            lost = int((~fine).sum()) + bool(torn)
            logger.warning("%s: %d of %d records are damaged, and left out", self.path, lost, whole + bool(torn))
        file.truncate(len(header) + whole * size)
        kept = {record["digest"].tobytes(): record["answer"] for record in records[fine]}
        if kept:
            self._remember([*kept], np.stack([*kept.values()]))
            calls = records[fine]["call"]
            self.calls, self._last_call = len(np.unique(calls)), int(calls.max())


def digest_of(image: np.ndarray) -> bytes:
    """Returns what an image is known by: a hash of its type and its bytes.  [H, W, 3] -> `DIGEST_BYTES` bytes"""
    return hashlib.blake2b(image.tobytes(), digest_size=DIGEST_BYTES, person=image.dtype.str.encode()).digest()


def _crc(record: Any) -> int:
    return zlib.crc32(record.tobytes()[:-4])
