"""CIFAR-10, as TensorFlow Datasets (TFDS) prepares it, decoded once."""

import io
import logging
import os
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from refine_jax.datasets import cache, preparation
from refine_jax.datasets.images import Dataset, Split
from refine_jax.errors import DataError

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

logger = logging.getLogger(__name__)

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# The figures that most CIFAR-10 training code uses. The deviations are means of each image's own.
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2023, 0.1994, 0.2010)

_PER_CLASS = {"train": 5_000, "test": 1_000}
_IMAGE_SHAPE = (32, 32, 3)
_FEATURES = ("id", "image", "label")


def load(*, data_dir: str | os.PathLike | None = None, cache_dir: str | os.PathLike | None = None) -> Dataset:
    """Returns CIFAR-10: 50,000 images to train on, 10,000 to test on, 32 x 32, ordered by their ids.

    What TFDS has prepared is decoded once and mapped from a cache after that. What is not prepared is
    downloaded and prepared where TensorFlow and a network are at hand.

    Args:
        data_dir: Folder in which TFDS keeps cifar10/; None: $TFDS_DATA_DIR, else ~/tensorflow_datasets.
        cache_dir: Where decoded images are kept; None: see `cache.directory`.

    Raises:
        SettingError: `data_dir` does not exist, is a file or cannot be read.
        DataError: The data are missing, incomplete or damaged; what was looked for, where, and what mends it.

    References:
        Krizhevsky, Learning multiple layers of features from tiny images (2009); TFDS's `cifar10`.
    """
    return _load(data_dir, cache_dir, _PER_CLASS)


def _load(
    data_dir: str | os.PathLike | None, cache_dir: str | os.PathLike | None, per_class: Mapping[str, int]
) -> Dataset:
    """`load` for so many images a class in each split."""
    root = preparation.data_root(data_dir)
    directory = preparation.find(root) or preparation.prepare(root)
    try:
        key = cache.fingerprint(directory, (preparation.INFO_FILE, preparation.FEATURES_FILE))
    except OSError as error:
        raise DataError(
            f"{error.filename}: cannot be read ({error.strerror}). {preparation.mend_incomplete(directory)}"
        ) from error
    arrays = cache.load_or_build("cifar10", key, lambda: _decode(directory, per_class), cache_dir)
    return Dataset(
        name="cifar10",
        train=Split(arrays["train_images"], arrays["train_labels"]),
        test=Split(arrays["test_images"], arrays["test_labels"]),
        class_names=CLASS_NAMES,
        mean=MEAN,
        std=STD,
    )


def _decode(directory: pathlib.Path, per_class: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Reads and decodes a prepared version, and checks that it is CIFAR-10."""
    logger.info("CIFAR-10 is read from %s and decoded, once", directory)
    builder = _open(directory)
    arrays = {}
    for split, count in per_class.items():
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = _decode_split(builder, split, count)
    return arrays


def _open(directory: pathlib.Path) -> "tfds.core.DatasetBuilder":
    """Opens a prepared version, checks what its description says, and that its format can be read here."""
    info = preparation.read_info(directory)
    formats = {info.get("fileFormat", "tfrecord"), *info.get("alternativeFileFormats", ())}
    if preparation.ARRAY_RECORD not in formats:
        if not preparation.tensorflow_installed():
            # TFDS prepares no second format in a folder that has one: hence another data_dir.
            other = directory.parents[1] / preparation.ARRAY_RECORD
            raise DataError(
                f"{directory} is prepared as {' and '.join(sorted(formats))}, which takes TensorFlow to read, and "
                f"that is not installed. Either of these mends it: the first of these commands; or both, and "
                f"--config.dataset.data_dir={other} from then on:\n{preparation.preparing_commands(other)}"
            )
        preparation.keep_tensorflow_off_gpus()
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(directory)
        features = builder.info.features
        lacking = [name for name in _FEATURES if name not in features]
        class_names = () if lacking else tuple(features["label"].names)
    except Exception as error:  # TFDS raises all kinds of errors for files that are not whole
        raise DataError(
            f"{directory}: TFDS cannot open it: {error}. {preparation.mend_incomplete(directory)}"
        ) from error
    if lacking:
        raise DataError(
            f"{directory} has no {' and no '.join(lacking)}; version 3.0.2 of TFDS's cifar10 has it: "
            f"remove {directory} and run again to prepare that"
        )
    # Without label.labels.txt TFDS numbers the classes.
    if class_names not in (CLASS_NAMES, tuple("0123456789")):
        raise DataError(f"{directory} has the classes {', '.join(class_names)}; expected: {', '.join(CLASS_NAMES)}")
    return builder


def _decode_split(builder: "tfds.core.DatasetBuilder", split: str, per_class: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images [N, 32, 32, 3] and labels [N] of a split in the order of their ids."""
    directory = pathlib.Path(builder.data_path)
    expected = per_class * len(CLASS_NAMES)
    info = builder.info.splits.get(split)
    if info is None or info.num_examples != expected:
        found = 0 if info is None else info.num_examples
        raise DataError(
            f"{directory} has {found:,} {split} images; expected: {expected:,}. "
            f"{preparation.mend_incomplete(directory)}"
        )
    images = np.empty((expected, *_IMAGE_SHAPE), np.uint8)
    labels = np.empty(expected, np.int32)
    ids = np.empty(expected, "S32")
    row = 0
    for shard in range(info.num_shards):
        try:
            for example in preparation.examples(builder, f"{split}[{shard}shard]"):
                images[row] = np.asarray(Image.open(io.BytesIO(example["image"])))
                labels[row], ids[row] = example["label"], example["id"]
                row += 1
        except Exception as error:  # each format has its own errors for a file that is not whole
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(
                f"{info.filepaths[shard]}: missing or damaged ({reason}). {preparation.mend_incomplete(directory)}"
            ) from error
    order = np.argsort(ids[:row])
    if len(np.unique(ids[:row])) != expected:
        raise DataError(f"{directory} has {len(np.unique(ids[:row])):,} {split} ids; expected: {expected:,}")
    counts = np.bincount(labels, minlength=len(CLASS_NAMES))
    if counts.tolist() != [per_class] * len(CLASS_NAMES):
        raise DataError(f"{directory} has {counts.tolist()} {split} images by class; expected: {per_class:,} of each")
    return images[order], labels[order]
