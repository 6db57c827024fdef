"""The ZIP archives that torch.save writes: entries stored as they are, which neither overlap nor lie.

Python's zipfile builds an object for each entry that the directory claims, believes the local headers, and
unpacks. Here the directory is counted before it is read, and a compressed entry is refused.

References:
    PKWARE, APPNOTE.TXT, ZIP File Format Specification, 6.3.10.
"""

import itertools
import struct
import zlib
from typing import NamedTuple

from refine_jax.interop.untrusted import MAX_DIRECTORY_BYTES, MAX_ENTRIES, TorchFileError, UntrustedFile, shown

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_DIRECTORY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_FULL32 = 0xFFFFFFFF
_SIZES_FOLLOW = 0x8  # Flag: the local header leaves sizes and checksum open.
_ENCRYPTED = 0x2041  # Flags: encrypted, strongly encrypted, with a masked header.


class Entry(NamedTuple):
    """Where the data of an entry stands.

    Attributes:
        offset: Its first byte in the file.
        size: Its bytes.
        checksum: Their CRC-32; 0 where the writer left it out.
    """

    offset: int
    size: int
    checksum: int


def entries(file: UntrustedFile) -> dict[str, Entry]:
    """Returns the entries of an archive by name.

    Raises:
        TorchFileError: The archive is damaged or contradicts itself, or an entry is compressed or encrypted.
    """
    count, size, start = _end(file)
    if count > MAX_ENTRIES:
        raise TorchFileError(f"is an archive of {count} entries, and {MAX_ENTRIES} are allowed")
    if size > MAX_DIRECTORY_BYTES:
        raise TorchFileError(f"has a directory of {size} bytes, and {MAX_DIRECTORY_BYTES} are allowed")
    directory = file.read(start, size)
    found: dict[str, Entry] = {}
    extents = [(start, start + size)]
    position = 0
    for _ in range(count):
        name, entry, header, position = _entry(file, directory, position)
        if name in found:
            raise TorchFileError(f"has two entries of the name {shown(name)}")
        found[name] = entry
        extents.append((header, entry.offset + entry.size))
    extents.sort()
    for (_, end), (following, _) in itertools.pairwise(extents):
        if following < end:
            raise TorchFileError("has entries that overlap")
    return found


def read(file: UntrustedFile, name: str, entry: Entry) -> bytes:
    """Returns the data of an entry.

    Raises:
        TorchFileError: They are not those that were saved.
    """
    data = file.read(entry.offset, entry.size)
    check(name, entry, data)
    return data


def check(name: str, entry: Entry, data: bytes | memoryview) -> None:
    """Checks the data of an entry.

    Raises:
        TorchFileError: They are not those that were saved.
    """
    if entry.checksum and zlib.crc32(data) != entry.checksum:
        raise TorchFileError(f"is damaged: the checksum of {shown(name)} is another: copy or download it again")


def _end(file: UntrustedFile) -> tuple[int, int, int]:
    """Returns number of entries, length and place of the directory."""
    damaged = TorchFileError("does not end as an archive does: it is not whole: copy or download it again")
    place = file.size - _END.size
    if place < 0:
        raise damaged
    magic, disk, first_disk, here, count, size, start, comment = _END.unpack(file.read(place, _END.size))
    if magic != b"PK\5\6" or disk or first_disk or here != count or comment:
        raise damaged
    locator = place - _END64_LOCATOR.size
    if locator >= 0:
        magic, disk, place64, disks = _END64_LOCATOR.unpack(file.read(locator, _END64_LOCATOR.size))
        if magic == b"PK\6\7":
            magic, length, _, _, disk, first_disk, here64, count64, size64, start64 = _END64.unpack(
                file.read(place64, _END64.size)
            )
            unsplit = not disk and not first_disk and disks <= 1 and here64 == count64
            if magic != b"PK\6\6" or length != _END64.size - 12 or not unsplit:
                raise damaged
            if count not in (0xFFFF, count64) or size not in (_FULL32, size64) or start not in (_FULL32, start64):
                raise TorchFileError("has two ends of its directory that contradict each other")
            count, size, start, place = count64, size64, start64, place64
    if start + size > place:
        raise TorchFileError("has a directory that overlaps its end")
    return count, size, start


def _entry(file: UntrustedFile, directory: bytes, position: int) -> tuple[str, Entry, int, int]:
    """Returns name, data and header's place of the entry at `position` of the directory, and the next position."""
    if position + _DIRECTORY.size > len(directory):
        raise TorchFileError("has a directory that is shorter than its entries")
    fields = _DIRECTORY.unpack_from(directory, position)
    magic, _, _, flags, method, _, _, checksum, packed, size, name_length, extra_length, comment_length = fields[:13]
    header = fields[16]
    position += _DIRECTORY.size
    following = position + name_length + extra_length + comment_length
    if magic != b"PK\1\2" or following > len(directory):
        raise TorchFileError("has a damaged directory")
    raw_name = directory[position : position + name_length]
    try:
        name = raw_name.decode()
    except UnicodeDecodeError as error:
        raise TorchFileError(f"has an entry of the name {shown(raw_name)}") from error
    if _FULL32 in (packed, size, header):
        extra = directory[position + name_length : position + name_length + extra_length]
        size, packed, header = _long_fields(name, extra, size, packed, header)
    if method or packed != size or flags & _ENCRYPTED:
        raise TorchFileError(
            f"is an archive whose entry {shown(name)} is compressed or encrypted ({size} bytes in {packed}), which "
            "torch.save does not do: save it again by torch.save"
        )
    local = _LOCAL.unpack(file.read(header, _LOCAL.size))
    magic, _, local_flags, local_method, _, _, _, local_packed, local_size, local_name, local_extra = local
    if (
        magic != b"PK\3\4"
        or local_method
        or local_flags & _ENCRYPTED
        or file.read(header + _LOCAL.size, local_name) != raw_name
        or any(
            length not in (min(size, _FULL32), _FULL32) and not (length == 0 and local_flags & _SIZES_FOLLOW)
            for length in (local_packed, local_size)
        )
    ):
        raise TorchFileError(f"has an entry {shown(name)} that its directory describes otherwise")
    offset = header + _LOCAL.size + local_name + local_extra
    if offset + size > file.size:
        raise TorchFileError(f"has an entry {shown(name)} that reaches beyond its end: copy or download it again")
    return name, Entry(offset, size, checksum), header, following


def _long_fields(name: str, extra: bytes, *fields: int) -> list[int]:
    """Returns the fields, those that do not fit into 32 bits as the extra field 1 gives them."""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == 1:
            long = extra[4 : 4 + length]
            count = fields.count(_FULL32)
            if len(long) >= 8 * count:
                values = iter(struct.unpack_from(f"<{count}Q", long))
                return [next(values) if field == _FULL32 else field for field in fields]
        extra = extra[4 + length :]
    raise TorchFileError(f"has an entry {shown(name)} without its size")
