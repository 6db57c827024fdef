"""Files of torch.save and safetensors, read without PyTorch and without running anything that they say."""

import io
import os
import re
from typing import Any

from refine_jax.interop import safetensors, torch_legacy, torch_pickle, values, zip_archive
from refine_jax.interop.pickle_machine import Budget
from refine_jax.interop.torch_tensors import Storage, declared, refuse_persistent, storage_id
from refine_jax.interop.untrusted import (
    MAX_FILE_BYTES,
    MAX_PICKLE_BYTES,
    TorchFileError,
    UntrustedFile,
    shown,
)

__all__ = ["TorchFileError", "load"]

_NEWEST_VERSION = 10
# A pickle by its protocol, or an older one by what it names after brackets and strings.
_PICKLE = re.compile(rb"\x80[\x00-\x05]|(?:[(\]}lN]|[SV][^\n]*\n)*[ci][\w.]+\n[\w.]+\n")


def load(path: str | os.PathLike, *, max_bytes: int = MAX_FILE_BYTES) -> Any:
    """Returns what a file holds, mostly nested dicts of arrays.

    It may be a ZIP archive of torch.save, the stream or tar archive of older versions, or safetensors; its content
    tells which. Tensors and parameters become NumPy arrays with the same types (bfloat16 and the 8-bit floats are
    those of ml_dtypes), tensors that share memory still do, OrderedDict and Counter become dict, torch.Size becomes
    tuple, torch.dtype becomes numpy.dtype, and torch.device becomes str. Gradients, hooks, devices and attributes of
    tensors are left out. docs/trust.md says what is promised of a file from a stranger.

    Args:
        path: The file.
        max_bytes: What the file may hold. Reading takes at most as much memory as the file, and 640 MiB more.

    Returns:
        Nested dicts, lists, tuples and sets of arrays, numbers, strings, bytes and None.

    Raises:
        TorchFileError: The file is missing, damaged or beyond a limit, or it holds what is not read. The message says
            what was found, by its name, and what to do.
    """
    try:
        with UntrustedFile(path, max_bytes) as file:
            value = _load(file)
            values.check(value, file.size)
            return value
    except TorchFileError as error:
        raise TorchFileError(f"{os.fspath(path)} {error}") from error
    except OSError as error:
        raise TorchFileError(f"{os.fspath(path)} cannot be read: {error.strerror}") from error


def _load(file: UntrustedFile) -> Any:
    start = file.read(0, min(512, file.size))
    if start.startswith(b"PK\3\4"):
        return _load_zip(file)
    if start.startswith(torch_legacy.MAGIC):
        return torch_legacy.load_stream(file)
    if torch_legacy.is_tar(start):
        return torch_legacy.load_tar(file)
    if safetensors.is_safetensors(start):
        return safetensors.load(file)
    if _PICKLE.match(start):
        # torch.load would run it. Read for the names in it alone: torch.save writes no such file.
        file.stream.seek(0)
        torch_pickle.load(file.stream, file.size, refuse_persistent, Budget())
        raise TorchFileError("is a pickle, and not one that torch.save wrote: save it by torch.save or safetensors")
    raise TorchFileError("is no file of torch.save and no safetensors file" + ("" if start else ": it is empty"))


def _load_zip(file: UntrustedFile) -> Any:
    """Returns the value of an archive ROOT/ that holds data.pkl, data/KEY for each storage, byteorder and version."""
    entries = zip_archive.entries(file)
    roots = [name.removesuffix("data.pkl") for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise TorchFileError("is a ZIP archive without the one data.pkl of torch.save")
    root = roots[0]
    if f"{root}constants.pkl" in entries:
        raise TorchFileError(
            "is a TorchScript program, which cannot be read without running it: in PyTorch, "
            "torch.save(torch.jit.load(path).state_dict(), path)"
        )
    order = _text(file, entries, f"{root}byteorder", "little")
    if order != "little":
        raise TorchFileError(
            f"has the byte order {shown(order)}: save it on a little-endian machine, or as safetensors"
        )
    version = _text(file, entries, f"{root}version", "3")
    if not version.isdecimal() or not 1 <= int(version) <= _NEWEST_VERSION:
        raise TorchFileError(f"has the format version {shown(version)}, and 1 to {_NEWEST_VERSION} are read")

    storages: dict[str, Storage] = {}

    def persistent(value: Any) -> Storage:
        dtype, key, _, numel = storage_id(value, 4)
        name = f"{root}data/{key}"
        if name not in entries:
            raise TorchFileError(f"has a tensor of the storage {shown(key)}, which it does not hold")
        if entries[name].size != declared(numel, dtype):
            raise TorchFileError(
                f"holds {entries[name].size} bytes in its storage {shown(key)}, and describes {declared(numel, dtype)}"
            )
        if key not in storages:
            storages[key] = Storage(file.array(entries[name].offset, entries[name].size), dtype)
            zip_archive.check(name, entries[name], storages[key].data.data)
        return Storage(storages[key].data, dtype)

    pickled = entries[f"{root}data.pkl"]
    if pickled.size > MAX_PICKLE_BYTES:
        raise TorchFileError(f"has a pickle of {pickled.size} bytes, and {MAX_PICKLE_BYTES} are allowed")
    budget = Budget()
    budget.spend(pickled.size)
    data = zip_archive.read(file, f"{root}data.pkl", pickled)
    return torch_pickle.load(io.BytesIO(data), len(data), persistent, budget)


def _text(file: UntrustedFile, entries: dict[str, zip_archive.Entry], name: str, default: str) -> str:
    """Returns the line that a small entry holds."""
    if name not in entries:
        return default
    if entries[name].size > 32:
        raise TorchFileError(f"has {entries[name].size} bytes in its entry {shown(name)}")
    return zip_archive.read(file, name, entries[name]).decode("latin-1").strip()
