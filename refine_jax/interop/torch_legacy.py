"""The formats of torch.save before the ZIP archive: a stream of pickles, and before PyTorch 0.1.10 a tar archive.

References:
    _legacy_load in torch/serialization.py, PyTorch 2.13.
"""

import struct
from typing import Any

import numpy as np

from refine_jax.interop import torch_pickle
from refine_jax.interop.pickle_machine import Budget
from refine_jax.interop.torch_tensors import (
    Storage,
    StorageType,
    declared,
    refuse_persistent,
    storage_id,
    tensor,
    whole,
)
from refine_jax.interop.untrusted import TorchFileError, UntrustedFile, shown

# The pickle of the number with which a stream begins, in protocol 2.
MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_PROTOCOL = 1001
_BLOCK = 512
_MAX_MEMBERS = 100


def is_tar(start: bytes) -> bool:
    """Returns whether a file that begins with these bytes, 512 or more, is a tar archive."""
    return start[257:262] == b"ustar"


def load_stream(file: UntrustedFile) -> Any:
    """Returns the value of a file that holds magic number, protocol, system, value, keys and storages in turn.

    Raises:
        TorchFileError: The file is damaged or holds what is not allowed.
    """
    budget = Budget()
    storages: dict[str, Storage] = {}
    views: dict[str, Storage] = {}
    filled = 0

    def persistent(value: Any) -> Storage:
        nonlocal filled
        dtype, name, _, numel, view = storage_id(value, 5)
        size = declared(numel, dtype)
        if name not in storages:
            filled += size
            if filled > file.size:
                raise TorchFileError(
                    f"has storages of {filled} bytes, and holds {file.size}: copy or download it again"
                )
            # Filled at the end; what is not filled never leaves this function.
            storages[name] = Storage(np.empty(size, np.uint8), dtype)
        if storages[name].dtype != dtype or len(storages[name].data) != size:
            raise TorchFileError(f"describes its storage {shown(name)} in two ways")
        if view is None:
            return storages[name]
        if not isinstance(view, tuple) or len(view) != 3 or not isinstance(view[0], str):
            raise TorchFileError(f"has {shown(view)} as a part of a storage")
        return views.setdefault(view[0], _part(storages[name], view[1], view[2]))

    def unpickle(allow: bool = False) -> Any:
        return torch_pickle.load(file.stream, file.size, persistent if allow else refuse_persistent, budget)

    file.stream.seek(len(MAGIC))
    protocol = unpickle()
    if type(protocol) is not int or protocol != _PROTOCOL:
        raise TorchFileError(f"is a stream of the version {shown(protocol)}, and {_PROTOCOL} is read")
    # The system's byte order and sizes: storages are little-endian whatever it says.
    unpickle()
    value = unpickle(allow=True)
    keys = unpickle()
    if not isinstance(keys, list) or not all(isinstance(name, str) for name in keys):
        raise TorchFileError(f"has {shown(keys)} as the list of its storages")
    if sorted(keys) != sorted(storages):
        raise TorchFileError("lists other storages than its tensors need")
    for name in keys:
        storage = storages[name]
        numel = struct.unpack("<q", _following(file, 8))[0]
        if numel * storage.dtype.itemsize != len(storage.data):
            raise TorchFileError(f"holds {numel} elements in its storage {shown(name)}, and describes it otherwise")
        file.fill(storage.data)
    return value


def load_tar(file: UntrustedFile) -> Any:
    """Returns the value of a tar archive with the members storages, tensors and pickle.

    Raises:
        TorchFileError: The file is damaged or holds what is not allowed.
    """
    budget = Budget()
    members = _members(file)
    objects: dict[int, Any] = {}

    def persistent(value: Any) -> Any:
        if not isinstance(value, str) or not value.isdecimal() or len(value) > 20 or int(value) not in objects:
            raise TorchFileError(f"refers to {shown(value)}, which is none of its tensors")
        return objects[int(value)]

    def unpickle(end: int, allow: bool = False) -> Any:
        return torch_pickle.load(file.stream, end, persistent if allow else refuse_persistent, budget)

    def add(identity: Any, value: Any) -> None:
        if type(identity) is not int or identity in objects:
            raise TorchFileError(f"has {shown(identity)} as the identity of a tensor or storage")
        budget.spend(1024)
        objects[identity] = value

    start, end = members["storages"]
    file.stream.seek(start)
    for _ in range(whole(unpickle(end))):
        identity, _, kind = _triple(unpickle(end))
        if not isinstance(kind, StorageType):
            raise TorchFileError(f"has a storage of the type {shown(kind)}")
        size = declared(struct.unpack("<q", _following(file, 8, end))[0], kind.dtype)
        add(identity, Storage(file.array(file.stream.tell(), _within(file, size, end)), kind.dtype))
    views = unpickle(end)
    for view in views if isinstance(views, list) else ():
        if not isinstance(view, tuple) or len(view) != 4 or type(view[1]) is not int or view[1] not in objects:
            raise TorchFileError(f"has {shown(view)} as a part of a storage")
        add(view[0], _part(objects[view[1]], view[2], view[3]))

    start, end = members["tensors"]
    file.stream.seek(start)
    for _ in range(whole(unpickle(end))):
        identity, storage, _ = _triple(unpickle(end))
        if type(storage) is not int or storage not in objects:
            raise TorchFileError(f"has a tensor of the storage {shown(storage)}, which it does not hold")
        axes = struct.unpack("<i4x", _following(file, 8, end))[0]
        if not 0 <= axes <= 32:
            raise TorchFileError(f"has a tensor of {axes} axes")
        numbers = struct.unpack(f"<{2 * axes + 1}q", _following(file, 16 * axes + 8, end))
        add(identity, tensor(objects[storage], numbers[-1], numbers[:axes], numbers[axes:-1]))

    start, end = members["pickle"]
    file.stream.seek(start)
    return unpickle(end, allow=True)


def _members(file: UntrustedFile) -> dict[str, tuple[int, int]]:
    """Returns begin and end of the three members; they are read in place, and nothing is extracted."""
    found: dict[str, tuple[int, int]] = {}
    position = 0
    for _ in range(_MAX_MEMBERS):
        if position + _BLOCK > file.size:
            break
        header = file.read(position, _BLOCK)
        if not header.strip(b"\0"):
            break
        size = _octal(header[124:136])
        if _octal(header[148:156]) != sum(header[:148]) + 8 * 32 + sum(header[156:]):
            raise TorchFileError("is a damaged tar archive: copy or download it again")
        name, kind = header[:100].rstrip(b"\0").decode("latin-1"), header[156:157]
        position += _BLOCK
        if name in ("storages", "tensors", "pickle"):
            if kind not in (b"0", b"\0"):
                raise TorchFileError(f"has the member {shown(name)} as a link or something else that is no file")
            if name in found or position + size > file.size:
                raise TorchFileError(f"has the member {shown(name)} twice, or not whole")
            found[name] = (position, position + size)
        position += -(-size // _BLOCK) * _BLOCK
    if len(found) < 3:
        raise TorchFileError("is a tar archive without the members storages, tensors and pickle of torch.save")
    return found


def _octal(field: bytes) -> int:
    text = field.strip(b" \0")
    if not text.isdigit() or b"8" in text or b"9" in text:
        raise TorchFileError("is a damaged tar archive: copy or download it again")
    return int(text, 8)


def _part(storage: Any, offset: Any, numel: Any) -> Storage:
    if not isinstance(storage, Storage):
        raise TorchFileError("has a part of something that is no storage")
    begin, size = declared(offset, storage.dtype), declared(numel, storage.dtype)
    if begin + size > len(storage.data):
        raise TorchFileError(f"has a part of a storage that ends at byte {begin + size} of {len(storage.data)}")
    return Storage(storage.data[begin : begin + size], storage.dtype)


def _triple(value: Any) -> tuple[Any, Any, Any]:
    if not isinstance(value, tuple) or len(value) != 3:
        raise TorchFileError(f"has {shown(value)} where it describes a tensor or storage")
    return value


def _within(file: UntrustedFile, size: int, end: int) -> int:
    if file.stream.tell() + size > end:
        raise TorchFileError("ends in the middle of a tensor's data: copy or download it again")
    return size


def _following(file: UntrustedFile, size: int, end: int | None = None) -> bytes:
    return file.stream.read(_within(file, size, file.size if end is None else end))
