"""ImageNet-50: 50 classes of ImageNet, 500 training and 100 test images each, 224 x 224; or another draw like it."""

import concurrent.futures
import itertools
import json
import logging
import numbers
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from refine_jax.datasets import (
    cache,
    imagenet_build,
    imagenet_classes,
    imagenet_pictures,
    imagenet_source,
    memory,
    preparation,
)
from refine_jax.datasets.encoded import Encoded
from refine_jax.datasets.images import Dataset, Split
from refine_jax.errors import DataError, SettingError

logger = logging.getLogger(__name__)

# The figures that most ImageNet training code uses.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
PER_CLASS = (500, 100)
SMALLEST_SIZE = 32
_LABELS_FILE, _METADATA_FILE = "label.labels.txt", "metadata.json"
_DECODED_AT_ONCE = 512


def load(
    *,
    data_dir: str | os.PathLike | None = None,
    cache_dir: str | os.PathLike | None = None,
    root: str | os.PathLike | None = None,
    classes: int | str | Sequence[int | str] | None = None,
    per_class: Sequence[int] | None = None,
    image_size: int | None = None,
    decoded: bool | None = None,
) -> Dataset:
    """Returns ImageNet-50, class after class, as 224 x 224 images; builds it where it is not built yet.

    Of every picture, in training as in evaluation, the middle is taken: short side resized to 256, then the central
    224 x 224; one that is 224 x 224 already stays as it is. Pictures are decoded once and mapped from a cache after
    that: 50 classes take 4.5 GB there, and as much memory while they are decoded. Where that is too much, training
    images are decoded whenever they are read, which comes to the same images.

    Args:
        data_dir: Folder in which TFDS keeps imagenet50/; None: $TFDS_DATA_DIR, else ~/tensorflow_datasets.
        cache_dir: Where decoded images are kept; None: see `cache.directory`.
        root: ImageNet as the user has it, see `prepare`. What is built already needs it no more.
        classes: See `prepare`.
        per_class: See `prepare`.
        image_size: Side of the images; None: 224. Smaller ones are middles of pictures resized in proportion.
        decoded: Whether training images are decoded once and kept; None: where they take at most half of the
            machine's memory. Else `train.images` is no array but `encoded.Encoded`.

    Raises:
        SettingError: An option has a value that cannot be.
        DataError: The data are missing, incomplete or damaged; what was looked for, where, and what mends it.

    References:
        Russakovsky et al., ImageNet large scale visual recognition challenge (2015). The size of the subset is the
        REFINE paper's (Chen et al., ICLR 2025), which does not name its classes.
    """
    request = _request(classes, per_class, imagenet_pictures.SHORT_SIDE)
    size = imagenet_pictures.SIZE if image_size is None else image_size
    if not isinstance(size, numbers.Integral) or not SMALLEST_SIZE <= size <= imagenet_pictures.SIZE:
        raise SettingError(
            "dataset.image_size", image_size, f"a whole number, {SMALLEST_SIZE} to {imagenet_pictures.SIZE}"
        )
    folder = _find_or_build(root, request, data_dir)
    try:
        key = cache.fingerprint(folder, (preparation.INFO_FILE, _LABELS_FILE))
        ids = (folder / _LABELS_FILE).read_text().split()
    except OSError as error:
        raise DataError(
            f"{error.filename}: cannot be read ({error.strerror}). {preparation.mend_incomplete(folder)}"
        ) from error
    counts = dict(zip(("train", "test"), request.per_class, strict=True))
    if decoded is None:
        decoded = size**2 * 3 * len(ids) * sum(counts.values()) <= memory.of_machine() / 2
    if not decoded:
        train = _encoded(folder, counts.pop("train"), len(ids), size)
    name = "_".join([imagenet_build.NAME, *counts, str(size)])
    arrays = cache.load_or_build(name, key, lambda: _decode(folder, len(ids), counts, size), cache_dir)
    if decoded:
        train = Split(arrays["train_images"], arrays["train_labels"])
    return Dataset(
        name=imagenet_build.NAME,
        train=train,
        test=Split(arrays["test_images"], arrays["test_labels"]),
        class_names=tuple(imagenet_classes.names().get(name, name) for name in ids),
        mean=MEAN,
        std=STD,
    )


def prepare(
    root: str | os.PathLike,
    *,
    data_dir: str | os.PathLike | None = None,
    classes: int | str | Sequence[int | str] | None = None,
    per_class: Sequence[int] | None = None,
    short_side: int | None = imagenet_pictures.SHORT_SIDE,
) -> pathlib.Path:
    """Builds ImageNet-50 as a data set of TFDS, in array_record, from what a user has of ImageNet.

    TensorFlow is needed for TFRecord files alone. A build that was interrupted goes on where it was.

    Files are ordered by the SHA-256 of "0/" and their name without its suffix, and taken in this order: first the
    test images, then the training images, both from the training images of the source; where it has train/ and val/
    with class folders and enough images in val/, from these. A file that cannot be decoded is replaced by the
    next in order; one that is not an RGB JPEG is converted; 'changes' in metadata.json lists both. Other files are
    kept byte for byte, unless they are resized.

    Args:
        root: A folder with ILSVRC2012_img_train.tar, or that file; a folder of class folders named by WordNet ids, or
            one with train/ and perhaps val/ of these; or TFDS's prepared imagenet2012.
        data_dir: Where imagenet50/ is made; None: as in `load`.
        classes: None: the 50 of `imagenet_classes.published`; n: the first n, in the order that these were drawn
            in, of those that the source has, sorted; or WordNet ids, whose order is that of the labels.
        per_class: Training and test images of each class; None: 500 and 100.
        short_side: Pictures whose short side is longer are resized to it; None: pictures stay as they are.

    Returns:
        The folder of the version; `tfds.builder_from_directory` opens it.

    Raises:
        SettingError: An option has a value that cannot be.
        DataError: Classes or images are missing, files are damaged, or the outcome cannot be written.
    """
    return _find_or_build(root, _request(classes, per_class, short_side), data_dir)


def _request(
    classes: int | str | Sequence[int | str] | None, per_class: Sequence[int] | None, short_side: int | None
) -> imagenet_build.Request:
    counts = PER_CLASS if per_class is None else per_class
    if (
        not isinstance(counts, Sequence)
        or len(counts) != 2
        or not all(isinstance(count, numbers.Integral) and count >= 1 for count in counts)
    ):
        raise SettingError("dataset.per_class", per_class, "two numbers, such as (500, 100): to train and to test on")
    if short_side is not None and short_side < 1:
        raise SettingError("short_side", short_side, "1 or more, or None")
    train, test = counts
    return imagenet_build.Request(imagenet_classes.read(classes), (int(train), int(test)), short_side)


def _find_or_build(
    root: str | os.PathLike | None, request: imagenet_build.Request, data_dir: str | os.PathLike | None
) -> pathlib.Path:
    """Returns the folder of the version."""
    data_root = preparation.data_root(data_dir, imagenet_build.NAME)
    folder = request.folder(data_root)
    if not (folder / preparation.INFO_FILE).exists():
        if root is None:
            raise DataError(
                f"ImageNet-50 is not built: there is no {folder / preparation.INFO_FILE}. To build it, say where "
                f"ImageNet is: --config.{imagenet_source.FIELD}=PATH, {imagenet_source.WHAT_IS_TAKEN}"
            )
        imagenet_build.build(root, request, data_root)
    if root is not None:  # another process may have built it in the meantime, from another place
        built_from = _source(folder)
        if built_from != str(pathlib.Path(root).expanduser().absolute()):
            raise SettingError(
                imagenet_source.FIELD,
                str(root),
                f"left open, or {built_from}, from which {folder} was built; to build from another: remove that "
                "folder, or give another dataset.data_dir",
            )
    return folder


def _source(folder: pathlib.Path) -> str:
    """What a version was built from."""
    try:
        return json.loads((folder / _METADATA_FILE).read_text())["source"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder / _METADATA_FILE}: missing or damaged ({error}). {preparation.mend_incomplete(folder)}"
        ) from error


def _encoded(folder: pathlib.Path, count: int, num_classes: int, size: int) -> Split:
    """The training images of a version, decoded whenever they are read; they lie class after class."""
    logger.info("ImageNet-50 is read from %s; training images are decoded whenever they are read", folder)
    images = Encoded(folder, "train", np.arange(count * num_classes), size)
    if (found := images.records_there()) != len(images):
        raise DataError(f"{folder} has {found} train images; expected: {count} of each class")
    return Split(images, np.repeat(np.arange(num_classes, dtype=np.int32), count))


def _decode(folder: pathlib.Path, num_classes: int, per_class: Mapping[str, int], size: int) -> dict[str, np.ndarray]:
    """Reads, decodes and crops splits of a version, and checks that they have what was asked for."""
    import tensorflow_datasets as tfds

    logger.info("ImageNet-50 is read from %s and decoded, once", folder)
    try:
        builder = tfds.builder_from_directory(folder)
    except Exception as error:  # TFDS raises all kinds of errors for files that are not whole
        raise DataError(f"{folder}: TFDS cannot open it: {error}. {preparation.mend_incomplete(folder)}") from error
    arrays = {}
    for split, count in per_class.items():
        images, labels = _decode_split(builder, split, count * num_classes, size)
        found = np.bincount(labels, minlength=num_classes).tolist()
        if found != [count] * num_classes:
            raise DataError(f"{folder} has {found} {split} images by class; expected: {count} of each")
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = images, labels
    return arrays


def _decode_split(builder, split: str, expected: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images [N, size, size, 3] and labels [N] of a split, in the order of its files."""
    images = np.empty((expected, size, size, 3), np.uint8)
    labels = np.empty(expected, np.int32)
    row = 0
    try:
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            examples = preparation.examples(builder, split)
            while batch := list(itertools.islice(examples, _DECODED_AT_ONCE)):
                middles = pool.map(imagenet_pictures.crop, [e["image"] for e in batch], itertools.repeat(size))
                for example, middle in zip(batch, middles, strict=True):
                    images[row], labels[row] = middle, example["label"]
                    row += 1
        if row != expected:
            raise ValueError(f"{row} images; expected: {expected}")
    except Exception as error:  # each format has its own errors for a file that is not whole
        raise preparation.damaged(pathlib.Path(builder.data_path), split, error) from error
    return images, labels
