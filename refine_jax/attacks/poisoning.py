"""A training set with a part of it changed: which images, and what they become."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from refine_jax.errors import SettingError
from refine_jax.keys import named_key

if TYPE_CHECKING:
    from refine_jax.attacks.trigger import Attack

Change = Callable[[np.ndarray, "Attack", jax.Array], np.ndarray]


class Poisoned(NamedTuple):
    """A poisoned training set.

    Args:
        images: uint8; an array where an array was given. [N, H, W, 3]
        labels: Of the type that was given. [N]
        indices: Of the poisoned images, sorted, int32. [P]
        cover_indices: Of images that were changed and kept their label, sorted, int32. [C]
    """

    images: Any
    labels: np.ndarray
    indices: np.ndarray
    cover_indices: np.ndarray


def show_trigger(images: np.ndarray, attack: "Attack", key: jax.Array) -> np.ndarray:
    """Returns images as they are shown at test time."""
    del key
    return attack.trigger(images)


def dirty_label(
    attack: "Attack",
    images: np.ndarray,
    labels: np.ndarray,
    key: jax.Array,
    *,
    plant: Change = show_trigger,
    cover: Change | None = None,
    cover_rate: Callable[["Attack"], float] = lambda attack: 0.0,
) -> Poisoned:
    """Changes images drawn from all classes, and their labels to the target.

    Args:
        attack: Whose rate and target count.
        images: uint8. [N, H, W, 3]
        labels: Integers. [N]
        key: For the indices, the poisoned and the cover images.
        plant: (images [P, H, W, 3], attack, key) -> what the poisoned images become, in the order of their indices.
        cover: Likewise of the cover images.
        cover_rate: Of an attack: the share of all images that are changed but keep their label. Where poisoned and
            cover images together would be more than there are, those that are left are the cover images.

    Returns:
        The poisoned training set.

    Source:
        Uniform over all training images, the target's own included, then the cover images from the rest: as in
        BackdoorBox, which the authors' program is built on.
    """
    indices, covers = draw_indices(
        attack, labels, named_key(key, "indices"), int_share(len(labels), cover_rate(attack))
    )
    changed, new_labels = own_copy(images), np.array(labels)
    changed[indices] = plant(changed[indices], attack, named_key(key, "poisoned"))
    if cover is not None:
        changed[covers] = cover(changed[covers], attack, named_key(key, "cover"))
    new_labels[indices] = attack.target
    return Poisoned(changed, new_labels, indices, covers)


def own_copy(images: Any) -> Any:
    """Returns a copy of images to be changed: an array, or what other images call a copy (see `datasets.overlay`)."""
    return np.array(images) if isinstance(images, np.ndarray | jax.Array) else images.copy()


def every_image(attack: "Attack", labels: np.ndarray) -> np.ndarray:
    """Returns the indices of all images, as candidates to be poisoned."""
    del attack
    return np.arange(len(labels))


def target_images(attack: "Attack", labels: np.ndarray) -> np.ndarray:
    """Returns the indices of the target's images, as candidates to be poisoned."""
    return np.flatnonzero(labels == attack.target)


def check(attack: "Attack", labels: np.ndarray) -> None:
    """Refuses an attack that cannot be planted into images of these labels.

    Raises:
        SettingError: The target is above every label, or the rate makes not one image of the candidates.
    """
    if len(labels) and attack.target > labels.max():
        raise SettingError("attack.target", attack.target, f"a class of these labels, 0 to {labels.max()}")
    count = len(attack.definition.candidates(attack, labels))
    if int_share(count, attack.rate) == 0:
        least = f"at least {1 / count:.3g}" if count else "none"
        raise SettingError("attack.rate", attack.rate, f"{least}, with {count} images to poison a part of")


def draw_indices(
    attack: "Attack", labels: np.ndarray, key: jax.Array, cover_count: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Draws which images are poisoned, and which of the other candidates cover that up.

    Args:
        attack: Tells the candidates; its rate is the share of them.
        labels: Integers. [N]
        key: For the draw.
        cover_count: How many cover images; fewer where there are not as many left.

    Returns:
        Two sorted, disjoint int32 arrays of indices.

    Raises:
        SettingError: See `check`.
    """
    check(attack, labels)
    candidates = attack.definition.candidates(attack, labels)
    count = int_share(len(candidates), attack.rate)
    order = np.asarray(jax.random.permutation(key, len(candidates)))
    drawn = np.asarray(candidates, np.int32)[order]
    return np.sort(drawn[:count]), np.sort(drawn[count : count + cover_count])


def int_share(count: int, rate: float) -> int:
    """Returns rate * count, rounded down; 0.29 of 100 is 29, which the product of floats is not."""
    return math.floor(rate * count + 1e-9)
