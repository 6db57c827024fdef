"""What was answered to the test images, kept beside the figures made of it, and while it is being asked."""

import json
import logging
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from refine_jax.asking import Answers
from refine_jax.files import hash_arrays, write_arrays
from refine_jax.training.log import format_seconds

logger = logging.getLogger(__name__)

_SCORES = ("clean_scores", "triggered_scores")  # the first versions have not kept them
# Seconds between two times that a classifier which takes long is kept and spoken of.
_INTERVAL = 60.0


def save(path: pathlib.Path, answers: Answers, identity: Mapping[str, Any]) -> None:
    """Writes answers as a .npz, classes as uint16 and scores as float32, with a checksum.

    Args:
        path: Of the file; its folder is made where it is not there.
        answers: Of a classifier, defended or not.
        identity: What was asked, and about which images; JSON values.
    """
    given = {"clean": answers.clean, "triggered": answers.triggered}
    arrays = {name: classes.astype(np.uint16) for name, classes in given.items() if classes is not None}
    scores = {name: getattr(answers, name) for name in _SCORES}
    arrays |= {name: kept.astype(np.float32) for name, kept in scores.items() if kept is not None}
    _write(path, {**arrays, "num_classes": np.asarray(answers.num_classes)}, identity)


def load(path: pathlib.Path, identity: Mapping[str, Any]) -> Answers | None:
    """Reads what `save` wrote, None where there is nothing, something damaged, or something of another identity."""
    if (arrays := _read(path, identity)) is None:
        return None
    clean, triggered = (None if name not in arrays else arrays[name].astype(int) for name in ("clean", "triggered"))
    return Answers(clean, triggered, int(arrays["num_classes"]), *(arrays.get(name) for name in _SCORES))


class Unfinished:
    """What a classifier that takes long has answered so far: kept, and spoken of, once a minute.

    Args:
        path: Of the file; there is none of a classifier that is done in a minute.
        identity: As in `save`.
        said: What the log calls the classifier.
        images: How many of each kind it is asked about.
    """

    def __init__(self, path: pathlib.Path, identity: Mapping[str, Any], said: str, images: Mapping[str, int]):
        self._path, self._identity, self._said, self._images = path, identity, said, images
        kept = _read(path, identity) or {}
        self._scores = {kind: kept[kind] for kind in images if kind in kept}
        self._begun_with = sum(map(len, self._scores.values()))
        self._started = self._last = time.monotonic()
        if self._begun_with:
            logger.info("evaluate: %s goes on after %s images", said, f"{self._begun_with:,}")

    def recall(self, kind: str) -> np.ndarray | None:
        """As in `asking.Memory`."""
        return self._scores.get(kind)

    def note(self, kind: str, batches: Sequence[np.ndarray]) -> None:
        """As in `asking.Memory`."""
        done = sum(map(len, batches))
        now = time.monotonic()
        if now - self._last < _INTERVAL and done < self._images[kind]:
            return
        self._scores[kind] = np.concatenate(batches).astype(np.float32)
        if now - self._last < _INTERVAL:
            return
        self._last = now
        _write(self._path, self._scores, self._identity)
        answered, total = sum(map(len, self._scores.values())), sum(self._images.values())
        left = (total - answered) * (now - self._started) / max(1, answered - self._begun_with)
        logger.info(
            "evaluate: %s, %s of %s images, %s left", self._said, f"{answered:,}", f"{total:,}", format_seconds(left)
        )


def _write(path: pathlib.Path, arrays: Mapping[str, np.ndarray], identity: Mapping[str, Any]) -> None:
    arrays = {**arrays, "identity": np.asarray(json.dumps(identity, sort_keys=True))}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_arrays(path, {**arrays, "sha256": np.asarray(_sum(arrays))})


def _read(path: pathlib.Path, identity: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
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
    if json.loads(str(arrays.pop("identity"))) != json.loads(json.dumps(identity)):
        return None
    return arrays


def _sum(arrays: Mapping[str, np.ndarray]) -> str:
    # Of the texts as bytes: what a type of texts is called depends on their length.
    return hash_arrays(
        {name: np.frombuffer(str(a).encode(), np.uint8) if a.dtype.kind == "U" else a for name, a in arrays.items()}
    )
