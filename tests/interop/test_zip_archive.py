"""Archives that lie: about sizes, places, names and methods."""

import io
import struct
import zipfile

import pytest

from refine_jax.interop import torch_file
from tests.interop.test_torch_file import write
from tests.interop.torch_files import archive, packed, storage, tensor

PICKLE = b"\x80\x02" + tensor((6,), (1,)) + b"."
PLAIN = archive(PICKLE, {"0": bytes(range(24))})
DIRECTORY, LOCAL = b"PK\1\2", b"PK\3\4"


def place(name, magic, field):
    """Returns where a field of the header of an entry stands."""
    for start in range(len(PLAIN)):
        length = 46 if magic == DIRECTORY else 30
        if PLAIN.startswith(magic, start) and PLAIN.startswith(name.encode(), start + length):
            return start + field
    raise AssertionError(name)


def changed(start, code, value):
    """Returns the archive with a number written at a place."""
    data = bytearray(PLAIN)
    struct.pack_into(code, data, start, value)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (changed(place("archive/data/0", DIRECTORY, 24), "<I", 1 << 30), "is compressed or encrypted"),
        (changed(place("archive/data/0", DIRECTORY, 10), "<H", 8), "is compressed or encrypted"),
        (changed(place("archive/data/0", DIRECTORY, 8), "<H", 1), "is compressed or encrypted"),
        (changed(place("archive/data/0", DIRECTORY, 20), "<Q", 25 | 25 << 32), "its directory describes otherwise"),
        (changed(place("archive/data/0", LOCAL, 8), "<H", 8), "that its directory describes otherwise"),
        (changed(place("archive/data/0", LOCAL, 6), "<H", 1), "that its directory describes otherwise"),
        (changed(place("archive/data/0", LOCAL, 36), "<B", ord("x")), "that its directory describes otherwise"),
        (changed(place("archive/data/0", LOCAL, 28), "<H", 0xFFFF), "reaches beyond its end"),
        (changed(place("archive/data/0", DIRECTORY, 42), "<I", 0), "that its directory describes otherwise"),
        (changed(place("archive/data/0", DIRECTORY, 42), "<I", 1 << 31), "outside its"),
        (changed(place("archive/data/0", DIRECTORY, 16), "<I", 1), "checksum of 'archive/data/0'"),
        (changed(place("archive/data/0", DIRECTORY, 28), "<H", 0xFFFF), "damaged directory"),
        (changed(place("archive/data.pkl", DIRECTORY, 46), "<B", 0xFF), "entry of the name"),
        (changed(len(PLAIN) - 12, "<H", 9), "not whole"),
        (changed(len(PLAIN) - 10, "<I", 0), "shorter than its entries"),
        (changed(len(PLAIN) - 6, "<I", 1 << 30), "overlaps its end"),
        (changed(len(PLAIN) - 2, "<H", 1), "not whole"),
        (PLAIN + b"x", "not whole"),
    ],
)  # fmt: skip
def test_lies_are_refused(tmp_path, data, message):
    with pytest.raises(torch_file.TorchFileError, match=message):
        torch_file.load(write(tmp_path, data))


def test_an_entry_inside_another_is_refused(tmp_path):
    """Two entries of the same bytes, as zip bombs have them."""
    inner = LOCAL + bytes(22) + struct.pack("<HH", 1, 0) + b"x" + bytes(4)
    data = bytearray(packed({"archive/data.pkl": b"N.", "y": inner}))
    start = data.index(inner)
    directory = data.index(DIRECTORY)
    entry = struct.pack("<4s6H3L5H2L", DIRECTORY, 20, 20, 0, 0, 0, 0, 0, 4, 4, 1, 0, 0, 0, 0, 0, start) + b"x"
    struct.pack_into("<2L", data, start + 18, 4, 4)
    data[len(data) - 22 : len(data) - 22] = entry
    count, size = 3, len(data) - 22 - directory
    struct.pack_into("<2HL", data, len(data) - 14, count, count, size)
    with pytest.raises(torch_file.TorchFileError, match="entries that overlap"):
        torch_file.load(write(tmp_path, bytes(data)))


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", b"\x80\x02" + storage(numel=1 << 22) + b".")
        file.writestr("archive/data/0", bytes(1 << 24))
    with pytest.raises(torch_file.TorchFileError, match=r"compressed or encrypted \(\d+ bytes in \d+\)"):
        torch_file.load(write(tmp_path, buffer.getvalue()))


def test_two_entries_of_one_name_are_refused(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", b"N.")
        with pytest.warns(UserWarning, match="Duplicate name"):
            file.writestr("archive/data.pkl", b"N.")
    with pytest.raises(torch_file.TorchFileError, match=r"two entries of the name 'archive/data\.pkl'"):
        torch_file.load(write(tmp_path, buffer.getvalue()))


def test_a_directory_of_a_million_entries_is_not_read(tmp_path):
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1 << 20, 1 << 20, 0, len(PLAIN))
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, len(PLAIN), 1)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0, 0xFFFFFFFF, 0)
    with pytest.raises(torch_file.TorchFileError, match="archive of 1048576 entries, and 100000 are allowed"):
        torch_file.load(write(tmp_path, PLAIN + end64 + locator + end))
    short = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 3, 3, 0, 0xFFFFFFFF, 0)
    with pytest.raises(torch_file.TorchFileError, match="two ends of its directory"):
        torch_file.load(write(tmp_path, PLAIN + end64 + locator + short))


def test_sizes_of_64_bits_are_read(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file, file.open("archive/data.pkl", "w", force_zip64=True) as entry:
        entry.write(b"K\7.")
    assert torch_file.load(write(tmp_path, buffer.getvalue())) == 7
