"""An attack in a folder: what was drawn is written once and is what every later stage uses."""

import pathlib
from typing import NamedTuple

import numpy as np

from refine_jax.attacks import registry
from refine_jax.attacks.poisoning import Poisoned
from refine_jax.attacks.trigger import Attack
from refine_jax.errors import WorkdirError
from refine_jax.files import hash_arrays, read_json, write_arrays, write_json

_INDICES = ("indices", "cover_indices")


def save(folder: pathlib.Path, attack: Attack, poisoned: Poisoned) -> None:
    """Writes attack.json and arrays.npz.

    Args:
        folder: Made where it is not there.
        attack: Its description and arrays are kept.
        poisoned: Its indices are kept, not its images.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {f"attack/{name}": np.asarray(value) for name, value in attack.arrays.items()}
    arrays |= {name: getattr(poisoned, name) for name in _INDICES}
    write_arrays(folder / "arrays.npz", arrays)
    # Written last: without it, the folder does not count as holding an attack.
    write_json(folder / "attack.json", {**registry.describe(attack), "sha256": hash_arrays(arrays)})


class Kept(NamedTuple):
    """An attack as it lies in a folder, and the SHA-256 of everything that was drawn."""

    attack: Attack
    indices: np.ndarray
    cover_indices: np.ndarray
    sha256: str


def load(folder: pathlib.Path) -> Kept | None:
    """Reads what `save` wrote; None where nothing was saved.

    Raises:
        WorkdirError: The arrays are not those that were written.
    """
    if not (folder / "attack.json").exists():
        return None
    description = read_json(folder / "attack.json")
    wanted = description.pop("sha256")
    try:
        with np.load(folder / "arrays.npz", allow_pickle=False) as file:
            arrays = dict(file)
    except (OSError, ValueError, EOFError) as error:
        raise WorkdirError(f"{folder / 'arrays.npz'} cannot be read: {error}") from error
    if hash_arrays(arrays) != wanted:
        raise WorkdirError(f"{folder / 'arrays.npz'} is not what was written: its SHA-256 is not that of attack.json")
    indices = {name: arrays.pop(name) for name in _INDICES}
    drawn = {name.removeprefix("attack/"): value for name, value in arrays.items()}
    return Kept(registry.rebuild(description, drawn), **indices, sha256=wanted)
