"""What an attack is to the rest of the project: a trigger, a way to poison a training set, an augmentation."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import numpy as np

from refine_jax.attacks import poisoning
from refine_jax.attacks.poisoning import Poisoned


def no_augmentation(images: jax.Array, poisoned: jax.Array, key: jax.Array, attack: "Attack") -> jax.Array:
    """Returns the images as they are."""
    del poisoned, key, attack
    return images


@dataclasses.dataclass(frozen=True)
class Definition:
    """What the file of an attack says about it; `registry.build` makes an `Attack` of it.

    Args:
        options: Names and defaults. A type stands where an option is open: it is None until it is given.
        draw: (image_size (H, W), options, field, key) -> arrays. Checks the options, with errors whose fields start
            with `field` and a dot, and draws whatever is random, once.
        trigger: (images uint8 [N, H, W, 3], attack) -> uint8. What is shown at test time.
        rate: Share of the candidates that is poisoned where none is given.
        candidates: (attack, labels [N]) -> indices of the training images that may be poisoned.
        poison: (attack, images, labels, key) -> Poisoned, with keyword arguments classifier, progress and cache
            where `needs_classifier`.
        augment: (images float [N, H, W, 3], poisoned bool [N], key, attack) -> float. Must be jittable.
        needs_classifier: Whether `poison` wants a benign classifier.
    """

    options: Mapping[str, Any]
    draw: Callable[[tuple[int, int], Mapping[str, Any], str, jax.Array], dict[str, np.ndarray]]
    trigger: Callable[[np.ndarray, "Attack"], np.ndarray]
    rate: float = 0.1
    candidates: Callable[["Attack", np.ndarray], np.ndarray] = poisoning.every_image
    poison: Callable[..., Poisoned] = poisoning.dirty_label
    augment: Callable[[jax.Array, jax.Array, jax.Array, "Attack"], jax.Array] = no_augmentation
    needs_classifier: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Attack:
    """An attack for images of one size, with everything about its trigger drawn.

    Args:
        name: One of `attacks.names()`.
        target: The attacker's class.
        rate: Share of the training images that is poisoned.
        image_size: (H, W).
        seed: What the arrays were drawn from.
        options: JSON values; "array of shape ..." stands where an array was given.
        arrays: Patterns, weights and grids, not to be written to.
        definition: From the attack's file.
    """

    name: str
    target: int
    rate: float
    image_size: tuple[int, int]
    seed: int
    options: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]
    definition: Definition = dataclasses.field(repr=False)

    @property
    def needs_classifier(self) -> bool:
        """Whether `poison` wants a benign classifier."""
        return self.definition.needs_classifier

    def check(self, labels: np.ndarray) -> None:
        """Refuses training images into which it cannot be planted, before any work.

        Args:
            labels: Integers. [N]

        Raises:
            SettingError: The target is none of the classes, or the rate poisons not one image.
        """
        poisoning.check(self, np.asarray(labels))

    def trigger(self, images: np.ndarray) -> np.ndarray:
        """Shows images as the attacker does at test time.

        Args:
            images: uint8 RGB, not written to. [N, H, W, 3]

        Returns:
            uint8, the same on every call. [N, H, W, 3]
        """
        self._check(images)
        return self.definition.trigger(np.asarray(images), self)

    def poison(
        self,
        images: Any,
        labels: np.ndarray,
        key: jax.Array,
        classifier: Callable[[jax.Array], jax.Array] | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
        cache: pathlib.Path | None = None,
    ) -> Poisoned:
        """Plants the attack into a training set.

        Args:
            images: uint8 RGB; not written to, may be mapped from a file, or be no array but an `Overlay` of the data
                sets, and what comes out then is one too. [N, H, W, 3]
            labels: Integers; not written to. [N]
            key: For which images are poisoned, and whatever else is random about it.
            classifier: A benign one, float images in [0, 1] -> logits [N, K]; only for `needs_classifier`.
            progress: Called with (images done, of how many) as adversarial images come about.
            cache: Folder for adversarial images, from which an interrupted call is gone on with.

        Returns:
            The whole training set, and which of its images were changed.

        Raises:
            SettingError: The rate poisons no image, or the target is no class of these labels.
        """
        self._check(images)
        labels = np.asarray(labels)
        chex.assert_shape(labels, images.shape[:1])
        aids = {"classifier": classifier, "progress": progress, "cache": cache} if self.needs_classifier else {}
        return self.definition.poison(self, images, labels, key, **aids)

    def augment(self, images: jax.Array, poisoned: jax.Array, key: jax.Array) -> jax.Array:
        """Changes a batch of the victim's training as the attack asks for; jittable.

        Args:
            images: Floats in [0, 1]. [B, H, W, 3]
            poisoned: Which of them are poisoned. [B]
            key: For this step.

        Returns:
            Floats in [0, 1]. [B, H, W, 3]
        """
        chex.assert_shape(images, (None, *self.image_size, 3))
        chex.assert_shape(poisoned, images.shape[:1])
        return self.definition.augment(images, poisoned, key, self)

    def _check(self, images: np.ndarray) -> None:
        chex.assert_shape(images, (None, *self.image_size, 3))
        chex.assert_type(images, np.uint8)
