"""Answers of a victim by the image that it was shown, in a file that is only ever added to.

    a line of JSON that says of which oracle it is; then records of one length:
    digest of the image [16 bytes] | number of the call that answered it [4] | answer [4 each] | CRC-32 of all that [4]

A process that dies while it writes leaves a torn record at the end; it is cut off when the file is opened again. A
record that is damaged is left out, and its image is asked again; those behind it are found by their sums, wherever
they lie.
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
from collections.abc import Iterator, Mapping
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
        self._append(self._file, records.tobytes())

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

    def _append(self, file: BinaryIO, data: bytes) -> None:
        """Writes all of it, on the disk, or nothing."""
        before = os.fstat(file.fileno()).st_size
        try:
            while data:  # a disk that is almost full takes a part, and says so by its length alone
                data = data[file.write(data) :]
            os.fsync(file.fileno())
        except BaseException as error:  # whoever presses Ctrl-C may go on with this oracle
            with contextlib.suppress(OSError):
                file.truncate(before)
            if isinstance(error, OSError):
                raise StorageError(f"{self.path} cannot be written: {error.strerror}") from error
            raise

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
            self._append(file, header)
            return
        if not there.startswith(header):
            file.close()
            found = there.partition(b"\n")[0].decode(errors="replace")
            own = header.decode().rstrip()
            raise WorkdirError(
                f"{self.path} holds answers of another oracle: {found:.300}; this one is {own}: use another file, or "
                "delete it, and all is asked again"
            )
        size = self._record.itemsize
        places = [*_whole_records(there, len(header), size)]
        end = places[-1] + size if places else len(header)
        if lost := len(there) - len(header) - len(places) * size:
            said = "%s: %d bytes are damaged, and left out; %d records are whole"
            logger.warning(said, self.path, lost, len(places))
        file.truncate(end)
        if places:
            records = np.frombuffer(b"".join(there[place : place + size] for place in places), self._record)
            kept = {record["digest"].tobytes(): record["answer"] for record in records}
            self._remember([*kept], np.stack([*kept.values()]))
            self.calls, self._last_call = len(np.unique(records["call"])), int(records["call"].max())


def digest_of(image: np.ndarray) -> bytes:
    """Returns what an image is known by: a hash of its type and its bytes.  [H, W, 3] -> `DIGEST_BYTES` bytes"""
    return hashlib.blake2b(image.tobytes(), digest_size=DIGEST_BYTES, person=image.dtype.str.encode()).digest()


def _crc(record: Any) -> int:
    return zlib.crc32(record.tobytes()[:-4])


def _whole_records(data: bytes, place: int, size: int) -> Iterator[int]:
    """Where the records are that hold to their sums; behind one that does not, looked for byte by byte."""
    view = memoryview(data)
    while place + size <= len(data):
        end = place + size
        if zlib.crc32(view[place : end - 4]) == int.from_bytes(view[end - 4 : end], "little"):
            yield place
            place = end
        else:
            place += 1
