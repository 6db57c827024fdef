"""Files as torch.save writes them, made by hand around any pickle."""

import io
import pickle
import struct
import tarfile
import zipfile

MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def archive(pickled, storages={}, **entries):
    """Returns a ZIP archive with a pickle, storages by key, and other entries."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", pickled)
        for key, data in storages.items():
            file.writestr(f"archive/data/{key}", data)
        for name, data in ({"version": b"3\n", "byteorder": b"little"} | entries).items():
            file.writestr(f"archive/{name}", data)
    return buffer.getvalue()


def unpacked(data):
    """Returns the entries of a ZIP archive by name."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        return {name: file.read(name) for name in file.namelist()}


def packed(entries):
    """Returns a ZIP archive of these entries, stored."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in entries.items():
            file.writestr(zipfile.ZipInfo(name), data)
    return buffer.getvalue()


def stream(pickled, keys=(), storages=b""):
    """Returns the older stream of pickles."""
    head = [pickle.dumps(value, 2) for value in (1001, {"little_endian": True})]
    return b"".join([MAGIC, *head, pickled, pickle.dumps(list(keys), 2), storages])


def string(text):
    """Returns the opcodes that push a string."""
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def named(module, name):
    """Returns the opcodes that push what a name means."""
    return f"c{module}\n{name}\n".encode()


def storage(key="0", numel=6, kind="FloatStorage"):
    """Returns the opcodes that push a storage of an archive."""
    return b"(" + string("storage") + named("torch", kind) + string(key) + string("cpu") + integer(numel) + b"tQ"


def integer(value):
    """Returns the opcodes that push a whole number."""
    data = pickle.encode_long(value)
    return b"\x8a" + bytes([len(data)]) + data


def whole_tuple(values):
    """Returns the opcodes that push a tuple of whole numbers."""
    return b"(" + b"".join(map(integer, values)) + b"t"


def tensor(size, stride, offset=0, stored=None):
    """Returns the opcodes that push a tensor."""
    arguments = (storage() if stored is None else stored) + integer(offset) + whole_tuple(size) + whole_tuple(stride)
    return named("torch._utils", "_rebuild_tensor_v2") + b"(" + arguments + b"\x89}tR"


def tar(members=None, kind=tarfile.REGTYPE):
    """Returns the archive that PyTorch wrote before 0.1.10: {'weight': [[0, 1, 2], [3, 4, 5]], 'part': [4, 5]}."""
    values = struct.pack("<q6f", 6, *range(6))
    storages = dump(1) + pair(10, "cpu", "FloatStorage") + values + dump([(11, 10, 4, 2)])
    tensors = dump(2)
    for identity, stored, size, stride in ((20, 10, (2, 3), (3, 1)), (21, 11, (2,), (1,))):
        axes = len(size)
        tensors += pair(identity, stored, "FloatTensor")
        tensors += struct.pack(f"<i4x{2 * axes + 1}q", axes, *size, *stride, 0)
    body = b"\x80\x02}(" + string("weight") + string("20") + b"Q" + string("part") + string("21") + b"Qu."
    members = {"storages": storages, "tensors": tensors, "pickle": body} if members is None else members
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:", format=tarfile.PAX_FORMAT) as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.type, info.mtime = kind, 1.5  # A time that is no whole number has a header of its own.
            info.size, info.linkname = (len(data), "") if kind == tarfile.REGTYPE else (0, "/etc/passwd")
            file.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def dump(value):
    """Returns the pickle of plain values."""
    return pickle.dumps(value, 2)


def pair(identity, other, kind):
    """Returns the pickle of (identity, other, class)."""
    pushed = string(other) if isinstance(other, str) else integer(other)
    return b"\x80\x02" + integer(identity) + pushed + named("torch", kind) + b"\x87."
