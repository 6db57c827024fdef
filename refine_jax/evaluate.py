"""Measures an export, or the victim of a run alone, on images of one's choice.

    python -m refine_jax.evaluate --export=DIR [--data=...] [--attack=... | --triggered=...] [--output=FILE.json]
    python -m refine_jax.evaluate --victim=WORKDIR ...

Printed is the table that a run ends with: of an export, the classifier alone and behind its defense, as its programs
answer. A classifier that was a function is in these alone, and there are no figures of it without the defense.
docs/metrics.md says what the figures are.
"""

import argparse
import ast
import os
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from refine_jax import asking, attacks, datasets, ending, environment, evaluation, export, transport, victim
from refine_jax.attacks import kept
from refine_jax.attacks.trigger import Attack
from refine_jax.classifier import Classifier
from refine_jax.datasets import class_folders
from refine_jax.errors import DataError, SettingError, WorkdirError, did_you_mean
from refine_jax.files import read_json, read_record, write_arrays, write_json
from refine_jax.opening import load_dataset
from refine_jax.report.tables import text_table
from refine_jax.triggered import known_labels
from refine_jax.workdir import Workdir

SCHEMA = 1
Predict = Callable[[Any], Any]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Does what a command line asks for.

    Args:
        argv: Its arguments; None: those of this process.

    Returns:
        What --output writes.

    Raises:
        RefineError: Something that the user can mend.
    """
    given = parser().parse_args(argv)
    for flag, path in (("--output", given.output), ("--images", given.images)):
        _check_place(flag, path)
    if given.export:
        exported, described = export.load(given.export), given.export
        manifest, permutation = exported.manifest, exported.permutation
        alone = None if export.is_of_function(manifest) else export.restore(given.export).classifier
        num_classes, section = len(permutation), (manifest.get("settings") or {}).get("dataset")
        names, image_size = manifest["class_names"], exported.image_size
    else:
        exported, described, permutation = None, given.victim, None
        alone, section, names, image_size = _load_victim(given.victim)
        num_classes = alone.num_classes
    images, labels, names = _read_clean(given, section, names, image_size)
    knows = f"the classifier knows {num_classes}"
    if labels is not None and labels.max() >= num_classes:
        raise DataError(f"--data has the class {labels.max()}, and {knows}")
    triggered, triggered_labels, target, shown = _read_triggered(given, images, labels, names)
    if triggered_labels is not None and triggered_labels.max() >= num_classes:
        raise DataError(f"--triggered has the class {triggered_labels.max()}, and {knows}")
    if triggered is not None and not 0 <= target < num_classes:
        raise SettingError("--target", target, f"a class, 0 to {num_classes - 1}")
    if given.images:
        _write_images(given.images, images, labels, triggered, triggered_labels, target)

    def measure(predict: Predict, permutation: np.ndarray | None = None, *, logits: bool = False) -> dict[str, Any]:
        asked = None if labels is None else images
        answers = asking.answer(predict, asked, triggered, transport.SAMPLE)
        classes = labels if triggered_labels is None else triggered_labels
        figures = evaluation.count(answers, labels, target, permutation, classes)
        figures["w1"], figures["w1_images"] = evaluation.output_distance(answers, logits=logits)
        return figures

    no_defense = _unmeasured() if alone is None else measure(asking.compiled(alone), logits=True)
    results: dict[str, Any] = {
        "schema": SCHEMA,
        "measured": str(described),
        "data": given.data or section,
        "attack": shown,
        "environment": environment.describe(),
        "no_defense": no_defense,
        "defenses": {},
    }
    if exported is not None:
        figures = measure(exported, permutation)
        figures["der"], figures["ci95"]["der"] = evaluation.defense_effectiveness(no_defense, figures)
        results["defenses"] = {exported.manifest.get("defense", "defended"): figures}
    if given.output:
        write_json(given.output, results)
    return results


def _unmeasured() -> dict[str, Any]:
    """Returns the figures of a classifier that cannot be asked: None, each of them."""
    figures = evaluation.count(asking.Answers(clean=None, triggered=None, num_classes=None), None, 0)
    return {**figures, "w1": None, "w1_images": None}


def parser() -> argparse.ArgumentParser:
    """Returns what reads the command line."""
    command_line = argparse.ArgumentParser(
        "python -m refine_jax.evaluate", description="Measures an export, or the victim of a run alone.",
        allow_abbrev=False,
    )  # fmt: skip
    add = command_line.add_argument
    which = command_line.add_mutually_exclusive_group(required=True)
    which.add_argument("--export", type=pathlib.Path, help="export/ of a run, or what export.save wrote")
    which.add_argument("--victim", type=pathlib.Path, help="a working directory, whose victim is measured alone")
    add("--data", help="a data set's name, for its test images, or a folder of pictures; else that of the run")
    add("--data_dir", help="where the data set's files lie")
    shown = command_line.add_mutually_exclusive_group()
    shown.add_argument("--attack", help="an attack's name, or attack/ of a run, for the trigger drawn there")
    shown.add_argument("--triggered", type=pathlib.Path, help="a folder of triggered pictures, in class folders")
    add("--option", action="append", default=[], metavar="NAME=VALUE", help="of the attack; may be given again")
    add("--target", type=int, help="the attacker's class; else the attack's, or 0")
    add("--seed", type=int, default=0, help="that the attack's trigger is drawn from")
    add("--output", type=pathlib.Path, help="JSON file to write the figures to")
    add("--images", type=pathlib.Path, help=".npz file to write the images to, for examples/evaluate_exported.py")
    return command_line


def _check_place(flag: str, path: pathlib.Path | None) -> None:
    """Refuses a file that could not be written in the end."""
    if path is not None and (path.is_dir() or not os.access(path.absolute().parent, os.W_OK)):
        raise SettingError(flag, str(path), "a file in a folder that is there and can be written to")


def _load_victim(directory: pathlib.Path) -> tuple[Classifier, dict[str, Any], list[str] | None, tuple[int, int]]:
    """Returns the victim of a run, and its data set's settings, class names and image size."""
    work = Workdir(directory)
    record = work.victim / "stage.json"
    if not record.is_file():
        raise WorkdirError(f"{directory} is no working directory with a victim: {record} is not there")
    stage, settings = read_record(record, ("schema", "settings", "outcome")), read_json(work.settings)
    if not stage.get("outcome"):
        raise WorkdirError(f"{directory} holds no finished victim: stage 'victim' does that")
    outcome, dataset = stage["outcome"], load_dataset(settings)
    classifier = victim.load_classifier(record.parent, outcome, dataset, settings["victim"])
    return classifier, settings["dataset"], list(dataset.class_names) or None, dataset.image_size


def _read_clean(
    given: argparse.Namespace, section: Mapping[str, Any] | None, names: list[str] | None, image_size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray | None, list[str] | None]:
    """Returns clean images [N, H, W, 3], their labels [N], where they are known, and the names of the classes."""
    if given.data is None and section is None:
        raise SettingError("--data", None, "a data set's name or a folder of pictures: this export names none")
    if given.data is not None and given.data not in datasets.names():
        if not pathlib.Path(given.data).is_dir():
            there = ", ".join(datasets.names()) + did_you_mean(given.data, datasets.names())
            raise SettingError("--data", given.data, f"{there}, or a folder of pictures")
        images, labels = class_folders.read("--data", given.data, names or (), image_size, "clean images")
        return images, labels, names
    section = dict(section or {}) if given.data is None else {"name": given.data, "train_images": None}
    if given.data_dir:
        section["data_dir"] = given.data_dir
    dataset = load_dataset({"dataset": section})
    if dataset.image_size != image_size:
        height, width = dataset.image_size
        allowed = f"images of {image_size[0]} x {image_size[1]}, as it was defended for; these have {height} x {width}"
        raise SettingError("--data", dataset.name, allowed)
    test = dataset.test
    return test.images, known_labels(test), names or list(dataset.class_names) or None


def _read_triggered(
    given: argparse.Namespace, images: np.ndarray, labels: np.ndarray | None, names: list[str] | None
) -> tuple[np.ndarray | None, np.ndarray | None, int, dict[str, Any] | None]:
    """Returns triggered images and their labels, None where none are asked for, the target, and what they are."""
    if given.triggered is not None:
        if given.option:
            raise SettingError("--option", given.option[0], "only with --attack: pictures have none")
        target = given.target or 0
        place, size = given.triggered, images.shape[1:3]
        triggered, triggered_labels = class_folders.read("--triggered", place, names or (), size, "triggered images")
        if triggered_labels is None:
            raise SettingError("--triggered", str(given.triggered), "folders called as the pictures' true classes")
        return triggered, triggered_labels, target, {"triggered": str(given.triggered), "target": target}
    if given.attack is None:
        if given.option or given.target is not None:
            raise SettingError("--attack", None, f"{', '.join(attacks.names())}: an option or a target was given")
        return None, None, 0, None
    attack = _make_attack(given, images.shape[1:3])
    return attack.trigger(images), labels, attack.target, attacks.describe(attack)


def _make_attack(given: argparse.Namespace, image_size: tuple[int, int]) -> Attack:
    if given.attack not in attacks.names() and pathlib.Path(given.attack).is_dir():
        attack = kept.load(pathlib.Path(given.attack)).attack
        if given.option or given.target not in (None, attack.target):
            raise SettingError("--attack", given.attack, "a folder alone: options and target are those kept in it")
        if attack.image_size != tuple(image_size):
            raise SettingError("--attack", given.attack, f"an attack on images of {image_size[0]} x {image_size[1]}")
        return attack
    options = {}
    for text in given.option:
        name, equals, value = text.partition("=")
        if not equals:
            raise SettingError("--option", text, "NAME=VALUE")
        options[name] = _value(value)
    return attacks.build(given.attack, image_size, target=given.target or 0, seed=given.seed, **options)


def _value(text: str) -> Any:
    """Reads a value as Python writes it; what is none is a text, such as a path."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _write_images(
    path: pathlib.Path,
    images: np.ndarray,
    labels: np.ndarray | None,
    triggered: np.ndarray | None,
    triggered_labels: np.ndarray | None,
    target: int,
) -> None:
    """Writes what is measured, as examples/evaluate_exported.py takes it."""
    arrays: dict[str, Any] = {"images": images, "labels": labels}
    if triggered is not None:
        arrays |= {"triggered": triggered, "triggered_labels": triggered_labels, "target": np.int32(target)}
    write_arrays(path, {name: value for name, value in arrays.items() if value is not None})


if __name__ == "__main__":
    sys.exit(ending.print_outcome(lambda: text_table(main())))
