"""An attack in a folder: what was drawn is written once and is what every later stage uses."""

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np

from refine_jax.attacks import registry
from refine_jax.attacks.poisoning import Poisoned, draw_indices, own_copy
from refine_jax.attacks.trigger import Attack
from refine_jax.errors import WorkdirError
from refine_jax.files import hash_arrays, read_record, write_arrays, write_record
from refine_jax.keys import named_key

DESCRIPTION, _ARRAYS = "attack.json", "arrays.npz"
# What attack.json says.
FIELDS = ("name", "target", "rate", "image_size", "seed", "options", "sha256")


@dataclasses.dataclass(frozen=True, eq=False)
class Kept:
    """An attack as it lies in a folder.

    Attributes:
        attack: Rebuilt; nothing about it was drawn anew.
        indices: Of the poisoned images. [P]
        cover_indices: Of the cover images. [C]
        images: What the poisoned images became, where making them again would take long; else None. uint8
            [P, H, W, 3]
        sha256: Of everything that was drawn.
    """

    attack: Attack
    indices: np.ndarray
    cover_indices: np.ndarray
    images: np.ndarray | None
    sha256: str

    def poison(self, images: Any, labels: np.ndarray, key: jax.Array) -> Poisoned:
        """Makes the poisoned training set again of which this was kept.

        Args:
            images: The clean ones, as in `Attack.poison`. uint8 [N, H, W, 3]
            labels: Integers [N]
            key: That it was poisoned with.

        Raises:
            WorkdirError: Other images would be poisoned now.
        """
        if self.images is None:
            poisoned = self.attack.poison(images, labels, key)
        else:
            # The images are not made again, but which ones they are is drawn again.
            drawn = draw_indices(self.attack, labels, named_key(key, "indices"), len(self.cover_indices))
            changed = own_copy(images)
            changed[self.indices] = self.images
            poisoned = Poisoned(changed, np.array(labels), *drawn)
        for name in ("indices", "cover_indices"):
            if not np.array_equal(getattr(poisoned, name), getattr(self, name)):
                raise WorkdirError(f"the {name} that were kept of attack {self.attack.name} are not those drawn now")
        return poisoned


def save(folder: pathlib.Path, attack: Attack, poisoned: Poisoned) -> None:
    """Writes attack.json and arrays.npz.

    Args:
        folder: Made where it is not there.
        attack: Its description and arrays are kept.
        poisoned: Its indices are kept; its poisoned images only where a classifier had to be trained for them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {f"attack/{name}": np.asarray(value) for name, value in attack.arrays.items()}
    arrays |= {"indices": poisoned.indices, "cover_indices": poisoned.cover_indices}
    if attack.needs_classifier:
        arrays["images"] = poisoned.images[poisoned.indices]
    write_arrays(folder / _ARRAYS, arrays)
    # Written last: without it, the folder does not count as holding an attack.
    write_record(folder / DESCRIPTION, {**registry.describe(attack), "sha256": hash_arrays(arrays)})


def is_saved(folder: pathlib.Path) -> bool:
    """Returns whether a folder holds an attack."""
    return (folder / DESCRIPTION).exists()


def load(folder: pathlib.Path) -> Kept:
    """Reads what `save` wrote.

    Raises:
        WorkdirError: There is no attack, or its arrays are not those that were written.
    """
    if not is_saved(folder):
        raise WorkdirError(f"{folder} holds no attack: {folder / DESCRIPTION} is missing")
    description = read_record(folder / DESCRIPTION, FIELDS)
    wanted = description.pop("sha256")
    try:
        with np.load(folder / _ARRAYS, allow_pickle=False) as file:
            arrays = dict(file)
    except Exception as error:  # of which kind depends on what is damaged
        raise WorkdirError(f"{folder / _ARRAYS} cannot be read: {str(error).partition(chr(10))[0]}") from error
    if hash_arrays(arrays) != wanted:
        raise WorkdirError(f"{folder / _ARRAYS} is not what was written: its SHA-256 is not that of {DESCRIPTION}")
    drawn = {name.removeprefix("attack/"): value for name, value in arrays.items() if name.startswith("attack/")}
    attack = registry.rebuild(description, drawn)
    return Kept(attack, arrays["indices"], arrays["cover_indices"], arrays.get("images"), wanted)
