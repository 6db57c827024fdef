"""A victim that somebody else has trained: read from a file, held against the images, kept as a trained one would be.

    victim.checkpoint    a file of torch.save or safetensors, see `interop.checkpoint_formats`; or the working
                         directory of another run of this project, whose victim is taken

What cannot be read off the file (mean, deviation, channel order, input size) is a setting, and what is neither said
nor known is asked for. Which preprocessing was used, and where it is from, is recorded.
"""

import dataclasses
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from refine_jax import networks, victim
from refine_jax.attacks import kept
from refine_jax.classifier import Classifier
from refine_jax.datasets.images import Dataset
from refine_jax.errors import DataError, RefineError, SettingError
from refine_jax.files import read_record
from refine_jax.interop import checkpoint_formats, torch_weights
from refine_jax.interop.checkpoint_formats import Checkpoint, Pictures
from refine_jax.interop.state_dicts import WeightsError
from refine_jax.interop.torch_weights import Weights

logger = logging.getLogger(__name__)

# What torchvision's networks are trained with.
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_NAMED = 3  # entries that an error names


@dataclasses.dataclass(frozen=True, eq=False)
class Imported:
    """A classifier as it came from somewhere else.

    Attributes:
        classifier: With its preprocessing.
        format: What wrote it.
        preprocessing_from: Of 'mean', 'std', 'channels', 'input_size', where the value is from.
        accuracy: On clean test images, as its maker measured it; None where nothing is said.
        triggered: Triggered test images that came with it.
        remarks: What is known and cannot be used, and what is assumed, as sentences.
    """

    classifier: Classifier
    format: str
    preprocessing_from: Mapping[str, str]
    accuracy: float | None
    triggered: Pictures | None
    remarks: tuple[str, ...]

    def describe(self) -> dict[str, Any]:
        """Returns where the classifier and its preprocessing are from, as JSON values."""
        return {
            "format": self.format,
            "preprocessing_from": dict(self.preprocessing_from),
            "claimed_accuracy": self.accuracy,
        }


def read(settings: Mapping[str, Any], dataset: Dataset) -> Imported:
    """Reads the checkpoint of a configuration; whatever can be wrong with it is said here.

    Args:
        settings: The section 'victim', completed, with a checkpoint.
        dataset: Whose images it will be shown.

    Raises:
        SettingError: The network is another, preprocessing is missing or impossible, or the classes are not the data
            set's.
        DataError: The file is damaged, dangerous or no checkpoint.
    """
    path, name, entry = pathlib.Path(settings["checkpoint"]).expanduser(), settings["name"], settings.get("entry")
    if not path.exists():
        raise SettingError(
            "victim.checkpoint", settings["checkpoint"], "a file or a working directory; it is not there"
        )
    if path.is_dir():
        if entry is not None:
            raise SettingError("victim.entry", entry, "nothing with a run's victim: it is the only one")
        found, options, variables = _read_run(path, name)
    else:
        found, options, variables = _read_file(path, name, entry)
    num_classes = options.pop("num_classes")
    _check_classes(num_classes, dataset, path)
    values, sources, told = _preprocessing(settings, found, name, dataset)
    try:
        classifier = Classifier(name, variables, num_classes, options=options, **values)
    except SettingError as error:
        raise SettingError(f"victim.{error.field}", error.value, error.allowed) from error
    _check_size(classifier, dataset)
    return Imported(classifier, found.format, sources, found.accuracy, found.triggered, (*found.remarks, *told))


def name_classes(imported: Imported, dataset: Dataset) -> Dataset:
    """Returns the data set, with the classifier's classes where it knows of none: '0', '1', ..."""
    if dataset.class_names:
        return dataset
    return dataclasses.replace(dataset, class_names=tuple(map(str, range(imported.classifier.num_classes))))


def _read_run(path: pathlib.Path, name: str) -> tuple[Checkpoint, dict[str, Any], Any]:
    """Reads the victim of a working directory of this project, trained or imported."""
    folder = next((place for place in (path / "victim", path) if (place / "stage.json").is_file()), None)
    if folder is None:
        allowed = "a file, or the working directory of a run of this project; it has no victim/stage.json"
        raise SettingError("victim.checkpoint", str(path), allowed)
    try:
        record = read_record(folder / "stage.json", ("schema", "settings", "outcome"))
        wanted, outcome = record["settings"]["victim"], record["outcome"]
        theirs, described = wanted["name"], dict(outcome["classifier"])
        sha256 = outcome["victim_sha256"]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{folder / 'stage.json'} describes no victim that is trained, or is of an earlier version of this program"
        ) from error
    if theirs != name:
        raise SettingError("victim.name", name, f"{theirs}, as {folder} has")
    variables = victim.load(folder, sha256)
    known = {part: described[part] for part in ("mean", "std", "channels", "input_size")}
    known["input_size"] = known["input_size"] or _trained_size(folder, record["settings"])
    options = {**described["options"], "num_classes": described["num_classes"]}
    return Checkpoint("refine-jax", None, known, None), options, variables


def _trained_size(folder: pathlib.Path, settings: Mapping[str, Any]) -> tuple[int, int] | None:
    """Returns the size of the images that a run's victim was made for: the attack's, or what the settings ask for."""
    attack = folder.parent / "attack" / kept.DESCRIPTION
    try:
        if attack.is_file():
            height, width = read_record(attack, kept.FIELDS)["image_size"]
        else:
            height = width = settings["dataset"].get("image_size")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{folder}: the size of the images that its victim was trained on cannot be read") from error
    return (height, width) if type(height) is int and type(width) is int else None


def _read_file(path: pathlib.Path, name: str, entry: str | None) -> tuple[Checkpoint, dict[str, Any], Any]:
    """Reads a file of weights, with what its layers besides the network say."""
    found = checkpoint_formats.load(path)
    weights = _weights(name, found.weights, path, entry)
    found = dataclasses.replace(
        found,
        preprocessing={**found.preprocessing, **weights.preprocessing},
        remarks=(*found.remarks, *weights.remarks),
    )
    return found, {**weights.options}, weights.variables


def _weights(name: str, weights: Any, path: pathlib.Path, entry: str | None) -> Weights:
    """Returns the network's, or says which network the weights are of."""
    try:
        return torch_weights.read(name, weights, entry)
    except SettingError as error:
        raise SettingError(f"victim.{error.field}", error.value, error.allowed) from error
    except WeightsError as error:
        fitting = torch_weights.fitting(weights, entry)
        if name in fitting:  # its entries are there, and what they hold cannot be
            raise DataError(f"{path}: {error}") from error
        if fitting:
            raise SettingError("victim.name", name, f"{' or '.join(fitting)}, whose weights {path} holds") from error
        shortened = "; ".join(_shortened(part) for part in str(error).split("; "))
        raise DataError(
            f"{path} holds the weights of none of the networks {', '.join(networks.names())} ({shortened}): a network "
            "of your own can be defended from Python, by refine_jax.defend"
        ) from error


def _shortened(part: str) -> str:
    what, colon, names = part.partition(": ")
    listed = names.split(", ")
    if not colon or len(listed) <= _NAMED:
        return part
    return f"{what}: {', '.join(listed[:_NAMED])} and {len(listed) - _NAMED} more"


def _check_classes(num_classes: int, dataset: Dataset, path: pathlib.Path) -> None:
    there = dataset.num_classes
    if there in (0, num_classes):
        return
    if dataset.sha256 is None:
        allowed = f"a classifier of the {there} classes of {dataset.name}; this one has {num_classes}"
        raise SettingError("victim.checkpoint", str(path), allowed)
    allowed = f"{num_classes} names, as {path} has so many classes, in their order; some may have no folder"
    raise SettingError("dataset.class_names", list(dataset.class_names), allowed)


def _preprocessing(
    settings: Mapping[str, Any], found: Checkpoint, name: str, dataset: Dataset
) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """Returns the preprocessing, where each part of it is from, and what is doubtful about that."""
    sources = [
        ("the settings", {part: settings[part] for part in ("mean", "std", "channels", "input_size")}),
        ("the file", found.preprocessing),
    ]
    if dataset.sha256 is None:
        sources.append((f"assumed: {dataset.name}'s", {"mean": dataset.mean, "std": dataset.std}))
    elif name.startswith("imagenet_"):
        sources.append(("assumed: torchvision's", _IMAGENET))
    sources.append(("assumed", {"channels": "RGB", "input_size": dataset.image_size}))
    values, taken = {}, {}
    for part in ("mean", "std", "channels", "input_size"):
        for source, known in sources:
            if part not in values and known.get(part) is not None:
                values[part], taken[part] = known[part], source
    if missing := [f"victim.{part}" for part in ("mean", "std") if part not in values]:
        raise SettingError(
            missing[0],
            None,
            f"three numbers, one a channel, in units of [0, 1] ({' and '.join(missing)}): what the classifier was "
            "trained with, which its file does not say; (0, 0, 0) and (1, 1, 1) where images went in as they are, in "
            "[0, 1], and no layer of it normalized them; for the authors' program on CIFAR-10 (0.4914, 0.4822, "
            "0.4465) and (0.2023, 0.1994, 0.2010), with victim.channels=BGR",
        )
    size = values["input_size"]
    size = (size, size) if isinstance(size, int) else tuple(size)
    values["input_size"] = None if size == dataset.image_size else size
    if "assumed" in " ".join(taken.values()):
        logger.info("victim: preprocessing %s", ", ".join(f"{p} {values[p]} ({s})" for p, s in taken.items()))
    return values, taken, _doubtful(values, taken, found)


def _doubtful(values: Mapping[str, Any], taken: Mapping[str, str], found: Checkpoint) -> list[str]:
    """Says of the mean and the deviation which are assumed, or others than in the file."""
    told = []
    for part in ("mean", "std"):
        used, other = tuple(map(float, values[part])), found.preprocessing.get(part)
        if taken[part].startswith("assumed: "):
            told.append(f"victim.{part} is not known, and {taken[part].removeprefix('assumed: ')} is assumed: {used}")
        elif other is not None and not np.allclose(used, other, atol=1e-4):
            told.append(f"victim.{part} is {used} by the settings, and {tuple(other)} by the file")
    return told


def _check_size(classifier: Classifier, dataset: Dataset) -> None:
    """Refuses images that the network cannot take, without running it."""
    images = jax.ShapeDtypeStruct((1, *dataset.image_size, 3), jnp.float32)
    try:
        jax.eval_shape(classifier, images)
    except RefineError as error:
        raise SettingError(
            "victim.input_size", classifier.input_size, f"a size that the network takes: {error}"
        ) from error
