"""Where TensorFlow Datasets (TFDS) keeps a prepared CIFAR-10, how it gets there, and what to do where it cannot.

Where it keeps others, and how any is read, is here too. Looking does not import TFDS, which takes longer than
everything else a second start does.
"""

import contextlib
import http.client
import importlib.util
import json
import logging
import os
import pathlib
import re
import shlex
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from refine_jax.errors import DataError, SettingError

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

logger = logging.getLogger(__name__)

NAME = "cifar10"
ARRAY_RECORD = "array_record"
INFO_FILE, FEATURES_FILE = "dataset_info.json", "features.json"
_ARCHIVE_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
_ARCHIVE = _ARCHIVE_URL.rpartition("/")[-1]
_NETWORK_TIMEOUT = 4.0  # seconds
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_READ_AT_ONCE = 1_000


def data_root(data_dir: str | os.PathLike | None, name: str = NAME) -> pathlib.Path:
    """Returns the folder that holds TFDS's data sets: `data_dir`, else $TFDS_DATA_DIR, else ~/tensorflow_datasets.

    Args:
        data_dir: None: see above.
        name: Of the data set, for errors.

    Raises:
        SettingError: A file, a folder that cannot be read, or a `data_dir` that does not exist.
    """
    field, given = "dataset.data_dir", data_dir
    if not given and os.environ.get("TFDS_DATA_DIR"):
        field, given = "$TFDS_DATA_DIR", os.environ["TFDS_DATA_DIR"]
    root = pathlib.Path(given or "~/tensorflow_datasets").expanduser().absolute()
    if data_dir and not root.exists():
        raise SettingError(field, str(root), f"a directory that exists, in which TFDS keeps {name}/")
    if root.exists() and not root.is_dir():
        raise SettingError(field, str(root), f"a directory, in which TFDS keeps {name}/; this is a file")
    if root.exists() and not os.access(root, os.R_OK | os.X_OK):
        raise SettingError(field, str(root), "a directory that this user may read")
    return root


def find(root: pathlib.Path) -> pathlib.Path | None:
    """Returns the newest prepared version below `root`; None where there is none.

    Args:
        root: Holds cifar10/<version>/. Where it is cifar10/ or cifar10/<version>/ itself, that is understood.

    Raises:
        SettingError: `root` is the folder of another data set.
        DataError: A version that is not whole, or that cannot be read.
    """
    try:
        found = _prepared_version(root)
        if found is None:
            return None
        if found.parent.parent != root:
            logger.info("%s is taken as it is; the data_dir to name would be the folder above %s/", root, NAME)
        name = read_info(found).get("name")
        if name != NAME:
            raise SettingError("dataset.data_dir", str(root), f"the folder above {NAME}/; this one holds {name!r}")
        return found
    except PermissionError as error:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error


def _prepared_version(root: pathlib.Path) -> pathlib.Path | None:
    if (root / INFO_FILE).exists():
        return root
    if root.parent.name == NAME and _VERSION.fullmatch(root.name):
        raise DataError(f"{root / INFO_FILE}: missing. {mend_incomplete(root)}")
    return _newest_version(root / NAME) or _newest_version(root)


def _newest_version(folder: pathlib.Path) -> pathlib.Path | None:
    versions = [path for path in folder.iterdir() if _VERSION.fullmatch(path.name)] if folder.is_dir() else []
    versions.sort(key=lambda path: [int(part) for part in path.name.split(".")], reverse=True)
    for path in versions:
        if (path / INFO_FILE).exists():
            return path
    if versions and folder.name == NAME:
        raise DataError(f"{versions[0] / INFO_FILE}: missing. {mend_incomplete(versions[0])}")
    return None


def read_info(directory: pathlib.Path) -> dict[str, Any]:
    """Returns what dataset_info.json of a prepared version says.

    Raises:
        DataError: It is not whole.
    """
    try:
        info = json.loads((directory / INFO_FILE).read_text())
        if not isinstance(info, dict):
            raise ValueError("not a JSON object")
        return info
    except ValueError as error:
        raise DataError(f"{directory / INFO_FILE}: damaged ({error}). {mend_incomplete(directory)}") from error


def mend_incomplete(directory: pathlib.Path) -> str:
    """Returns the sentence that says what to do about a prepared version that is not whole."""
    return (
        f"Copying or preparing the data was probably interrupted: copy it again as a whole, or remove {directory} "
        "and run again to prepare it anew."
    )


def damaged(folder: pathlib.Path, split: str, error: Exception) -> DataError:
    """Returns the error that says that a split could not be read, and what to do about it."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DataError(f"{folder}: the {split} images are missing or damaged ({reason}). {mend_incomplete(folder)}")


def tensorflow_installed() -> bool:
    """Returns whether there is a TensorFlow to import, without importing it."""
    return importlib.util.find_spec("tensorflow") is not None


def keep_tensorflow_off_gpus() -> None:
    """Leaves the accelerators' memory to JAX; TensorFlow would take all of it."""
    import tensorflow as tf

    with contextlib.suppress(RuntimeError):  # somebody has used TensorFlow before: too late, and not ours to mend
        tf.config.set_visible_devices([], "GPU")


def examples(builder: "tfds.core.DatasetBuilder", split: str) -> Iterator[dict[str, Any]]:
    """Yields what a split holds in the order of its files, 'image' as the bytes of its encoding."""
    import tensorflow_datasets as tfds

    decoders = {"image": tfds.decode.SkipDecoding()}  # TFDS's own decoding is slower, and wants OpenCV
    if ARRAY_RECORD in {file_format.value for file_format in builder.info.available_file_formats()}:
        source = builder.as_data_source(split, decoders=decoders)
        for start in range(0, len(source), _READ_AT_ONCE):
            yield from source.__getitems__(range(start, min(start + _READ_AT_ONCE, len(source))))
    else:
        yield from tfds.as_numpy(builder.as_dataset(split=split, decoders=decoders))


def open_records(folder: pathlib.Path, split: str) -> Any:
    """Opens a split that was prepared as array_record, for `records`."""
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(folder)
    return builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})


def records(source: Any, numbers: Any) -> list[dict[str, Any]]:
    """Returns some of the records that `open_records` has opened, 'image' as the bytes of its encoding."""
    return source.__getitems__([int(number) for number in numbers])


def prepare(root: pathlib.Path) -> pathlib.Path:
    """Downloads CIFAR-10 (170 MB) and prepares it below `root`, as array_record; TFDS needs TensorFlow for that.

    Returns:
        The folder of the prepared version.

    Raises:
        DataError: It cannot be done here; said within seconds, with what mends it.
    """
    missing = f"CIFAR-10 is not prepared: there is no {root / NAME}/<version>/{INFO_FILE}"
    if not tensorflow_installed():
        raise DataError(f"{missing}, and preparing it takes TensorFlow, which is not installed. {_mend(root)}")
    if not _archive_present(root) and (reason := _unreachable(_ARCHIVE_URL)):
        raise DataError(f"{missing}, and {_ARCHIVE_URL} cannot be reached to download it: {reason}. {_mend(root)}")
    import tensorflow_datasets as tfds

    logger.info("CIFAR-10 is downloaded to %s and prepared there, which takes some minutes", root)
    keep_tensorflow_off_gpus()
    try:
        builder = tfds.builder(NAME, data_dir=str(root), file_format=ARRAY_RECORD)
        builder.download_and_prepare()
    except Exception as error:  # whatever ends it, a half-done download or a full disk
        raise DataError(f"{missing}, and preparing it failed: {error}. {_mend(root)}") from error
    return pathlib.Path(builder.data_path)


def preparing_commands(root: pathlib.Path) -> str:
    """Returns the shell commands, a line each, that prepare CIFAR-10 below `root` as array_record."""
    python = shlex.quote(sys.executable or "python")
    code = (
        f'import tensorflow_datasets as tfds; tfds.builder("{NAME}", '
        f'data_dir={json.dumps(str(root), ensure_ascii=False)}, file_format="{ARRAY_RECORD}").download_and_prepare()'
    )
    install = "" if tensorflow_installed() else f"    {python} -m pip install tensorflow\n"
    return f"{install}    {python} -c {shlex.quote(code)}"


def _mend(root: pathlib.Path) -> str:
    return (
        f"What mends it, with a network:\n{preparing_commands(root)}\n"
        f"Without one: copy {NAME}/ as prepared on another machine to {root / NAME}, or (with TensorFlow) put\n"
        f"{_ARCHIVE_URL} at {_manual_archive(root)} and run again.\n"
        f"Where it is prepared elsewhere: --config.dataset.data_dir=DIR, the folder above {NAME}/."
    )


def _manual_archive(root: pathlib.Path) -> pathlib.Path:
    return root / "downloads" / "manual" / _ARCHIVE


def _archive_present(root: pathlib.Path) -> bool:
    """Returns whether TFDS will find the archive, put there by hand or downloaded before."""
    return _manual_archive(root).exists() or any((root / "downloads").glob("*cifar-10-binary*.tar.gz"))


def _unreachable(url: str) -> str | None:
    """Returns why nobody answers at `url`; None where somebody does."""
    outcome: list[str | None] = [f"no answer within {_NETWORK_TIMEOUT:.0f} s"]

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_NETWORK_TIMEOUT).close()
            outcome[0] = None
        except urllib.error.HTTPError:
            outcome[0] = None
        except (OSError, http.client.HTTPException) as error:
            outcome[0] = str(getattr(error, "reason", error))

    # Looking up a name heeds no timeout, hence a thread that can be left behind.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_NETWORK_TIMEOUT)
    return outcome[0]
