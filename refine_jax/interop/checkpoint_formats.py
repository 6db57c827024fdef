"""What a checkpoint says besides its weights, by the program that wrote it.

    state dict       a mapping of names to arrays, perhaps inside another ('state_dict', 'net', ...): the authors'
                     program, BackdoorBox, backdoor-toolbox, torchvision, pytorch-cifar, safetensors; it says nothing
                     of preprocessing
    BackdoorBench    attack_result.pt or defense_result.pt: network, data set and size; beside the first, its triggered
                     test images in bd_test_dataset/ and its accuracies in attack_df.csv

References:
    BackdoorBench (Wu et al., NeurIPS 2022), utils/save_load_attack.py and
    utils/aggregate_block/dataset_and_transform_generate.py, for keys and normalization.
"""

import csv
import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from refine_jax.errors import DataError
from refine_jax.interop import torch_file

# Normalization that BackdoorBench applies by the name of the data set.
_BACKDOORBENCH = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "tiny": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
    "gtsrb": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "celeba": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
# Under what keys programs write an accuracy beside the weights, as a fraction or in percent.
_ACCURACIES = ("test_acc", "acc", "best_acc", "acc1", "best_acc1", "best_prec1", "clean_acc", "accuracy")
_MAX_CSV_BYTES = 1 << 22


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Triggered test images that lie beside a checkpoint.

    Attributes:
        folder: Where they lie.
        files: Paths below it, and the true class of each.
        target: The attacker's class.
    """

    folder: pathlib.Path
    files: tuple[tuple[str, int], ...]
    target: int


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a file of weights says.

    Attributes:
        format: 'BackdoorBench' or 'state dict'.
        weights: For `torch_weights.read`.
        preprocessing: 'mean', 'std', 'channels', 'input_size' (H, W): those that are known.
        accuracy: On clean test images, as its maker measured it; None where nothing is said.
        triggered: None where there are none, or they have no one target.
        remarks: What is known and cannot be used, as sentences.
    """

    format: str
    weights: Any
    preprocessing: Mapping[str, Any]
    accuracy: float | None
    triggered: Pictures | None = None
    remarks: tuple[str, ...] = ()


def load(path: str | os.PathLike) -> Checkpoint:
    """Reads a file of weights from a stranger; nothing in it is run.

    Raises:
        TorchFileError: It cannot be read as one; what was found and what to do.
        DataError: It is no checkpoint.
    """
    tree = torch_file.load(path)
    if not isinstance(tree, Mapping):
        raise DataError(f"{os.fspath(path)} holds a {type(tree).__name__}, and no mapping of names to arrays")
    if {"model", "model_name", "num_classes"} <= {*tree} and {"clean_data", "data_path", "bd_test"} & {*tree}:
        return _backdoorbench(pathlib.Path(path), tree)
    found = (_fraction(tree[key]) for key in _ACCURACIES if key in tree)
    return Checkpoint("state dict", tree, {}, next((value for value in found if value is not None), None))


def _backdoorbench(path: pathlib.Path, tree: Mapping[str, Any]) -> Checkpoint:
    known, remarks = {}, []
    data_name = tree.get("clean_data")
    if isinstance(data_name, str) and data_name in _BACKDOORBENCH:
        mean, std = _BACKDOORBENCH[data_name]
        known = {"mean": mean, "std": std, "channels": "RGB"}
    size = tree.get("img_size")
    if isinstance(size, list | tuple) and len(size) >= 2 and all(type(n) is int and 0 < n <= 4096 for n in size[:2]):
        known["input_size"] = tuple(size[:2])
    triggered = None
    if "bd_test" in tree:
        triggered, remark = _triggered(path, tree["bd_test"])
        remarks += [remark] if remark else []
    accuracy = _last_accuracy(path.with_name("attack_df.csv")) if "bd_test" in tree else None
    return Checkpoint("BackdoorBench", tree["model"], known, accuracy, triggered, tuple(remarks))


def _triggered(path: pathlib.Path, state: Any) -> tuple[Pictures | None, str]:
    """The pictures of 'bd_test', and why there are none.

    Their paths are those of the machine that wrote them: what comes after the name of their folder counts.
    """
    try:
        container = state["bd_data_container"]
        folder = path.parent / _name(container["save_folder_path"])
        entries = [
            (_below(entry["path"], folder.name), int(entry["other_info"][0]), int(entry["other_info"][1]))
            for entry in container["data_dict"].values()
        ]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError):
        return None, "its triggered test images are not files, so they cannot be used"
    targets = {target for _, target, _ in entries}
    if len(targets) != 1:
        return None, f"its triggered test images have {len(targets)} targets, and an attack with one is measured"
    if not folder.is_dir() or folder.is_symlink():
        return None, f"its triggered test images are not beside it: there is no {folder}"
    return Pictures(folder, tuple(sorted((name, label) for name, _, label in entries)), targets.pop()), ""


def _name(path: str) -> str:
    """The name of a folder; never of one that this one lies in."""
    name = pathlib.PureWindowsPath(path).name
    if name in ("", ".", ".."):
        raise ValueError(f"{path!r} is no folder")
    return name


def _below(path: str, folder: str) -> str:
    """What of a path comes after the last folder of this name; never something outside of it."""
    parts = pathlib.PureWindowsPath(path).parts  # of either kind of slashes
    below = parts[len(parts) - parts[::-1].index(folder) :]
    if not below or ".." in below:
        raise ValueError(f"{path!r} is no path below {folder!r}")
    return "/".join(below)


def _last_accuracy(path: pathlib.Path) -> float | None:
    """The last 'test_acc' of a table of BackdoorBench."""
    try:
        if not path.is_file() or path.stat().st_size > _MAX_CSV_BYTES:
            return None
        with path.open(newline="", errors="replace") as file:
            values = [_fraction(_number(row.get("test_acc"))) for row in csv.DictReader(file)]
    except (OSError, csv.Error):
        return None
    return next((value for value in reversed(values) if value is not None), None)


def _number(text: Any) -> float | None:
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


def _fraction(value: Any) -> float | None:
    """An accuracy, written as a fraction or in percent; None where it cannot be one."""
    if isinstance(value, np.ndarray | np.generic) and np.ndim(value) == 0:
        value = value.item()
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= 100:
        return None
    value = float(value)
    return value if value <= 1 else value / 100
