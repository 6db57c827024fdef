"""A black box of one's own defended in one call."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from refine_jax.defenses.blackbox import settings as own_settings
from refine_jax.defenses.blackbox import substitute, zeroth_order
from refine_jax.defenses.blackbox.learned import PLAN, Behind, apply
from refine_jax.defenses.blackbox.oracle import Oracle
from refine_jax.errors import StorageError, WorkdirError, choose
from refine_jax.files import hash_arrays, read_record, write_record
from refine_jax.networks.unet import UNet
from refine_jax.training.journal import Journal

METHODS = {"substitute": substitute, "zeroth_order": zeroth_order}


@dataclasses.dataclass(frozen=True, eq=False)
class DefendedOracle:
    """A black box behind its defense.

    Attributes:
        oracle: The victim.
        unet_variables: The trained U-Net's.
        permutation: Output mapping. int32 [K]
        unet: The module.
        findings: JSON values: queries, calls, how far copy, victim and defended victim agree; see `substitute.learn`
            and `zeroth_order.learn`.
    """

    oracle: Oracle
    unet_variables: Any
    permutation: np.ndarray
    unet: UNet
    findings: Mapping[str, Any]

    def transform(self, images: np.ndarray) -> np.ndarray:
        """T(x) of images, uint8 or float in [0, 1].  [N, H, W, 3] -> float32 [N, H, W, 3]"""
        oracle, permutation = self.oracle, jnp.asarray(self.permutation)
        behind = Behind(None, self.unet_variables, permutation, self.unet, oracle.answers, oracle.image_size)
        return apply(behind, images, oracle.batch_size)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Asks the victim about T(x); that is neither counted as queries nor kept (`Oracle.serve`).

        Args:
            images: RGB, uint8, or float in [0, 1]. [N, H, W, 3]

        Returns:
            Probabilities after the output mapping, float32 [N, K]; 0 and 1 where the victim gives labels.

        Raises:
            OracleError: The victim's function has failed for good.
        """
        answers = self.oracle.serve(self.transform(images))
        if self.oracle.answers == "labels":
            answers = np.eye(self.oracle.num_classes, dtype=np.float32)[answers]
        return answers[:, np.argsort(self.permutation)]


def defend(
    oracle: Oracle,
    images: np.ndarray,
    settings: Mapping[str, Any] | None = None,
    *,
    method: str = "substitute",
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
) -> DefendedOracle:
    """Defends a black box with REFINE.

    Args:
        oracle: The victim.
        images: Clean, without labels, RGB. uint8 [N, H, W, 3]
        settings: Some of the fields of the method's `DEFAULTS`, but for what the oracle says of itself, its answers
            and its budget; None: as they are.
        method: 'substitute' or 'zeroth_order'.
        seed: For everything that is drawn.
        folder: Where checkpoints and metrics are left. The same call goes on from there where it was stopped, and
            asks no image twice if the oracle has a cache; what steps are done again show of T(x) is the same image
            where arithmetic repeats bit for bit. None: what is stopped is lost.

    Raises:
        SettingError: A setting is unknown or impossible.
        BudgetSpent: The budget is too small to begin with.
        OracleError: The victim's function has failed for good.
        WorkdirError: The folder is of another defense.
    """
    images = np.asarray(images)
    chex.assert_shape(images, (None, None, None, 3))
    chex.assert_type(images, np.uint8)
    module = METHODS[choose("method", method, METHODS)]
    whole = own_settings.complete(settings, module.DEFAULTS)
    own_settings.check(method, whole, len(images), images.shape[1:3])
    oracle.missing(images[:1])  # images that it does not take are refused before they are noted in the folder
    journal = None
    if folder is not None:
        identity = {"method": method, "seed": seed, "settings": whole, "images": hash_arrays(images)}
        place = pathlib.Path(folder)
        identity = json.loads(json.dumps(identity, default=lambda number: number.item()))  # NumPy's
        seen = {"num_classes": oracle.num_classes, "answers": oracle.answers, "shown": oracle.shown}
        _hold_to(place, {**identity, **seen})
        journal = Journal(
            place / "checkpoints", place / "metrics.jsonl", identity, log_every=10, checkpoint_minutes=5.0
        )
    learned = module.learn(oracle, images, whole, seed, journal)
    permutation = np.asarray(jax.device_get(learned.permutation))
    return DefendedOracle(oracle, learned.unet_variables, permutation, learned.unet, learned.findings)


def _hold_to(folder: pathlib.Path, identity: Mapping[str, Any]) -> None:
    """Refuses the folder of another defense before a query is paid; whose answers they are shows in the answers."""
    path, checkpoints = folder / "defense.json", folder / "checkpoints"
    # A call that was refused before any of this was there has left nothing to be mixed with.
    if not any((checkpoints / name).exists() for name in (PLAN, "copy", "unet")):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_record(path, identity)
        except OSError as error:
            raise StorageError(f"{path} cannot be written: {error.strerror}") from error
        return
    if not path.exists():
        raise WorkdirError(f"{folder} holds a defense, and no defense.json that says which: use another folder")
    before, after = (traverse_util.flatten_dict(each, sep=".") for each in (read_record(path, ()), identity))
    changed = [
        f"{field}: {before.get(field)!r} -> {after.get(field)!r}"
        for field in sorted({*before, *after})
        if before.get(field) != after.get(field)
    ]
    if changed:
        raise WorkdirError(
            f"{folder} is of another defense ({'; '.join(changed)}): use those settings, or another folder"
        )
