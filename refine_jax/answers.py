"""The classes that were answered to the test images, and some scores, kept beside the figures made of them."""

import json
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from refine_jax.evaluation import Answers
from refine_jax.files import hash_arrays, write_arrays

logger = logging.getLogger(__name__)

_SCORES = ("clean_scores", "triggered_scores")  # the first versions have not kept them


def save(path: pathlib.Path, answers: Answers, identity: Mapping[str, Any]) -> None:
    """Writes answers as a .npz, classes as uint16 and scores as float32, with a checksum.

    Args:
        path: Of the file; its folder is made where it is not there.
        answers: Of a classifier, defended or not.
        identity: What was asked, and about which images; JSON values.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    given = {"clean": answers.clean, "triggered": answers.triggered}
    arrays = {name: classes.astype(np.uint16) for name, classes in given.items() if classes is not None}
    scores = {name: getattr(answers, name) for name in _SCORES}
    arrays |= {name: kept.astype(np.float32) for name, kept in scores.items() if kept is not None}
    arrays["num_classes"] = np.asarray(answers.num_classes)
    arrays["identity"] = np.asarray(json.dumps(identity, sort_keys=True))
    write_arrays(path, {**arrays, "sha256": np.asarray(_sum(arrays))})


def load(path: pathlib.Path, identity: Mapping[str, Any]) -> Answers | None:
    """Reads what `save` wrote, None where there is nothing, something damaged, or something of another identity."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        whole = str(arrays.pop("sha256")) == _sum(arrays)
    except Exception:  # of which kind depends on what is damaged
        whole = False
    if not whole:
        logger.warning("%s is damaged: it is not used", path)
        return None
    if json.loads(str(arrays["identity"])) != json.loads(json.dumps(identity)):
        return None
    clean, triggered = (None if name not in arrays else arrays[name].astype(int) for name in ("clean", "triggered"))
    return Answers(clean, triggered, int(arrays["num_classes"]), *(arrays.get(name) for name in _SCORES))


def _sum(arrays: Mapping[str, np.ndarray]) -> str:
    # Of the texts as bytes: what a type of texts is called depends on their length.
    return hash_arrays(
        {name: np.frombuffer(str(a).encode(), np.uint8) if a.dtype.kind == "U" else a for name, a in arrays.items()}
    )
