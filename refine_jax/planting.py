"""The attack of a run: planted into the training images once, kept, and planted the same way ever after."""

import logging
import pathlib
import shutil
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from refine_jax.attacks import kept
from refine_jax.attacks.contact_sheet import contact_sheet
from refine_jax.attacks.poisoning import Poisoned
from refine_jax.attacks.registry import describe
from refine_jax.attacks.trigger import Attack
from refine_jax.datasets.images import Dataset
from refine_jax.datasets.overlay import Overlay
from refine_jax.errors import WorkdirError
from refine_jax.fields import differences
from refine_jax.keys import named_key

logger = logging.getLogger(__name__)

SHEET = "contact_sheet.png"
_SHEET_ROWS = 6
_PROGRESS_SECONDS = 15.0


def require_same(attack: Attack, folder: pathlib.Path) -> None:
    """Refuses a folder that holds another attack, as that of a victim does that was deleted by hand.

    Raises:
        WorkdirError: What is kept is damaged, or differs; in what.
    """
    if not kept.is_saved(folder):
        return
    if changed := differences(describe(kept.load(folder).attack), describe(attack)):
        raise WorkdirError(f"{folder} holds another attack ({'; '.join(changed)}): delete it, or use those settings")


def plant(
    dataset: Dataset, attack: Attack, folder: pathlib.Path, seed: int, train_benign: Callable[[], Any] | None = None
) -> tuple[kept.Kept, Poisoned]:
    """Poisons the training images, or makes the same poisoned images again of what was kept.

    What was drawn is left in the folder: attack.json, arrays.npz, and a picture of what the trigger does to test
    images, contact_sheet.png.

    Args:
        dataset: Clean.
        attack: Its arrays are taken from the folder, where it is kept there.
        folder: 'attack/' of a working directory.
        seed: For which images are poisoned, and what else is random about that.
        train_benign: Returns a benign classifier; called where the attack needs one and nothing is kept.

    Returns:
        (what is kept, the poisoned training set); its images are an `Overlay`, so that those that were not poisoned
        need not lie in memory a second time.

    Raises:
        WorkdirError: What is kept is damaged, or of other images.
    """
    key = named_key(seed, "attack/poison")
    images, labels = Overlay(dataset.train.images), dataset.train.labels
    if kept.is_saved(folder):
        found = kept.load(folder)
        return found, found.poison(images, labels, key)
    folder.mkdir(parents=True, exist_ok=True)
    cache = folder / "adversarial"
    classifier = train_benign() if attack.needs_classifier and train_benign else None
    poisoned = attack.poison(images, labels, key, classifier, progress=_Report(), cache=cache)
    _write_sheet(dataset, attack, folder)
    kept.save(folder, attack, poisoned)
    shutil.rmtree(cache, ignore_errors=True)  # is in arrays.npz now
    return kept.load(folder), poisoned


def _write_sheet(dataset: Dataset, attack: Attack, folder: pathlib.Path) -> None:
    """Pictures of test images, each of another class, none of the target's."""
    labels = dataset.test.labels
    classes = [label for label in np.unique(labels) if label != attack.target][:_SHEET_ROWS]
    clean = dataset.test.images[[int(np.flatnonzero(labels == label)[0]) for label in classes]]
    contact_sheet(clean, attack.trigger(clean)).save(folder / SHEET)


class _Report:
    """Says now and then how many adversarial images there are."""

    def __init__(self):
        self._said_at = time.monotonic()

    def __call__(self, done: int, count: int) -> None:
        if done == count or time.monotonic() - self._said_at >= _PROGRESS_SECONDS:
            self._said_at = time.monotonic()
            logger.info("attack: %d of %d adversarial images", done, count)
