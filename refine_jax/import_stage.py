"""The stage 'victim' of a classifier that somebody else has trained: kept as a trained one would be, and measured."""

import logging
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np

from refine_jax import asking, evaluation, triggered
from refine_jax.attacks.trigger import Attack
from refine_jax.classifier import CHANNEL_ORDERS, Classifier
from refine_jax.datasets.images import Dataset
from refine_jax.files import hash_arrays
from refine_jax.importing import Imported
from refine_jax.training.checkpoints import Checkpoints
from refine_jax.training.state import count_parameters
from refine_jax.triggered import Triggered
from refine_jax.workdir import Record

logger = logging.getLogger(__name__)

_TRIED = 1_000  # test images on which the other order of channels is tried
_FAR = 0.05
_STEP = 0  # of the one checkpoint


def load_triggered(
    settings: Mapping[str, Any], dataset: Dataset, imported: Imported, attack: Attack | None
) -> Triggered | None:
    """Returns what an imported victim's attack success is measured on, None where no trigger is known."""
    section = settings["attack"]
    if attack is not None:
        return triggered.of_attack(attack, dataset.test)
    if section["triggered_root"] is not None:
        return triggered.of_folder(section["triggered_root"], dataset, section["target"])
    return None if imported.triggered is None else triggered.beside_checkpoint(imported.triggered, dataset)


def identity(settings: Mapping[str, Any], imported: Imported, shown: Triggered | None) -> dict[str, Any]:
    """Returns what a defense of the classifier depends on, as JSON values; not where the classifier's file lies."""
    sha256 = hash_arrays(imported.classifier.variables)
    return {
        "attack": {"name": settings["attack"]["name"], "sha256": None if shown is None else shown.sha256()},
        "victim": {**imported.classifier.describe(), "sha256": sha256},
    }


def run(imported: Imported, dataset: Dataset, shown: Triggered | None, record: Record) -> None:
    """Keeps the classifier, measures it, and says what is doubtful about it.

    Args:
        imported: The classifier.
        dataset: Whose test images it is measured on.
        shown: What its attack success will be measured on.
        record: Of the stage 'victim'.
    """
    record.begin()
    keep(imported, record.folder / "checkpoints")
    figures, warnings = doubts(imported, dataset)
    if figures is not None:
        logger.info("victim: imported (%s), with a BA of %.2f %%", imported.format, 100 * figures["ba"])
    for warning in warnings:
        logger.warning("victim: %s", warning)
    classifier = imported.classifier
    record.finish(
        {
            "attack_sha256": None if shown is None else shown.sha256(),
            "victim_sha256": hash_arrays(classifier.variables),
            "classifier": classifier.describe(),
            "imported": {**imported.describe(), "warnings": warnings},
            "steps": _STEP,
            "train_seconds": None,
            "train_images_per_second": None,
            "parameters": count_parameters(classifier.variables["params"]),
        }
    )


def keep(imported: Imported, checkpoints: pathlib.Path) -> None:
    """Leaves the variables where those of a trained victim lie, in the same form."""
    shutil.rmtree(checkpoints, ignore_errors=True)  # of an import that was cut short
    variables = imported.classifier.variables
    state = {name: variables.get(name, {}) for name in ("params", "batch_stats")}
    with Checkpoints(checkpoints) as kept:
        kept.save(_STEP, state, {"format": imported.format})


def doubts(imported: Imported, dataset: Dataset) -> tuple[dict[str, Any] | None, list[str]]:
    """Measures the classifier where there are labels, and says what looks wrong with it.

    Args:
        imported: The classifier.
        dataset: Whose test images, all of them, it is measured on.

    Returns:
        (figures of `evaluation.benign_accuracy`, or None without labels; sentences).
    """
    told = list(imported.remarks)
    if not dataset.test.has_labels:
        return None, told
    images, labels = dataset.test.images, dataset.test.labels
    figures = evaluation.benign_accuracy(asking.compiled(imported.classifier), images, labels)
    (low, high), ba = figures["ci95"]["ba"], figures["ba"]
    chance = float(np.bincount(labels).max() / len(labels))
    wrong = (
        "its preprocessing (victim.mean, victim.std, victim.channels, victim.input_size) or the order of the classes"
    )
    wrong += " (dataset.class_names) is likely not the one it was trained with"
    if low <= chance + _FAR:
        told.append(
            f"the classifier's BA is {ba:.1%}, and one class alone makes up {chance:.1%} of the images: {wrong}"
        )
    elif imported.accuracy is not None and high < imported.accuracy - _FAR:
        told.append(
            f"the classifier's BA is {ba:.1%}, far under the {imported.accuracy:.1%} that its file says: {wrong}"
        )
    step = -(-len(labels) // _TRIED)
    other = _turned(imported.classifier)
    tried = evaluation.benign_accuracy(asking.compiled(other), images[::step], labels[::step])
    if tried["ci95"]["ba"][0] > high:
        told.append(
            f"with channels in {other.channels} order the classifier's BA is {tried['ba']:.1%} in place of {ba:.1%}: "
            f"set victim.channels={other.channels}"
        )
    return figures, told


def _turned(classifier: Classifier) -> Classifier:
    """The same classifier with its channels in the other order."""
    (order,) = {*CHANNEL_ORDERS} - {classifier.channels}
    return Classifier.from_description({**classifier.describe(), "channels": order}, classifier.variables)
