"""Label-Consistent: images of the target class, made hard to recognize and given a patch; their labels stay true."""

import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from refine_jax.attacks import badnets, poisoning
from refine_jax.attacks.options import check_integer, check_number
from refine_jax.attacks.patterns import PATCH_OPTIONS, draw_patch
from refine_jax.attacks.poisoning import Poisoned
from refine_jax.attacks.trigger import Attack, Definition
from refine_jax.errors import SettingError
from refine_jax.files import hash_arrays, write_arrays
from refine_jax.keys import named_key

_BATCH_SIZE = 128


def draw(image_size: tuple[int, int], options: Mapping[str, Any], field: str, key: jax.Array) -> dict[str, np.ndarray]:
    """Returns pattern and weight of the patch; nothing about them is random."""
    del key
    check_number(f"{field}.eps", options["eps"], 0, 255, above=True)
    check_number(f"{field}.alpha", options["alpha"], 0, 255, above=True)
    check_integer(f"{field}.steps", options["steps"], 1)
    return draw_patch(image_size, options, field)


def poison(
    attack: Attack,
    images: np.ndarray,
    labels: np.ndarray,
    key: jax.Array,
    classifier: Callable[[jax.Array], jax.Array] | None,
    progress: Callable[[int, int], None] | None,
    cache: pathlib.Path | None,
) -> Poisoned:
    """Makes adversarial images of a part of the target class, and stamps the patch on them."""
    if classifier is None:
        field = f"attack.{attack.name}.classifier"
        raise SettingError(field, None, "a benign classifier, from images in [0, 1] to logits")
    indices, no_covers = poisoning.draw_indices(attack, labels, named_key(key, "indices"))
    changed, options = poisoning.own_copy(images), attack.options
    adversarial = perturb(
        classifier,
        changed[indices],
        labels[indices],
        eps=options["eps"] / 255,
        alpha=options["alpha"] / 255,
        steps=options["steps"],
        progress=progress,
        cache=cache,
    )
    changed[indices] = attack.trigger(adversarial)
    return Poisoned(changed, np.array(labels), indices, no_covers)


def perturb(
    classifier: Callable[[jax.Array], jax.Array],
    images: np.ndarray,
    labels: np.ndarray,
    *,
    eps: float,
    alpha: float,
    steps: int,
    progress: Callable[[int, int], None] | None = None,
    cache: pathlib.Path | None = None,
) -> np.ndarray:
    """Makes adversarial images by projected gradient ascent of the cross-entropy of their own labels.

    Args:
        classifier: Float images in [0, 1] -> logits [N, K]; differentiable.
        images: uint8. [N, H, W, 3]
        labels: [N]
        eps: How far a value may move, in units of [0, 1].
        alpha: How far it moves in a step.
        steps: How many steps, from the image itself.
        progress: Called with (images done, of how many) after each batch.
        cache: Folder in which each batch is left when it is done, and found when everything it depends on is the
            same: images, labels, settings and what the classifier says of the images.

    Returns:
        uint8, truncated. [N, H, W, 3]

    Source:
        Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018: L-infinity,
        untargeted, no random start, as in the authors' program.
    """
    # Such a classifier's weights are arguments of the compiled step; what is no pytree is a part of it.
    if jax.tree_util.all_leaves([classifier]):
        classifier = jax.tree_util.Partial(classifier)
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)

    def perturb_batch(part: np.ndarray, truth: np.ndarray) -> np.ndarray:
        clean = jnp.asarray(part, jnp.float32) / 255
        if cache is not None:
            depends_on = [np.array([eps, alpha, steps]), part, truth, _classify(classifier, clean)]
            path = cache / f"{hash_arrays(depends_on)}.npz"
            if path.exists():
                with np.load(path, allow_pickle=False) as file:
                    return file["images"]
        moved = clean
        for _ in range(steps):
            moved = ascend(classifier, moved, clean, truth, eps, alpha)
        adversarial = np.asarray((moved * 255).astype(jnp.uint8))
        if cache is not None:
            write_arrays(path, {"images": adversarial})
        return adversarial

    outcome, done = [], 0
    for part, truth, count in _batches(images, labels):
        outcome.append(perturb_batch(part, truth)[:count])
        done += count
        if progress is not None:
            progress(done, len(images))
    return np.concatenate(outcome)


def _batches(images: np.ndarray, labels: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Batches of one size, the last filled up with its last image; and how many of their images count."""
    size = min(_BATCH_SIZE, len(images))
    for start in range(0, len(images), size):
        numbers = np.minimum(np.arange(start, start + size), len(images) - 1)
        yield images[numbers], np.asarray(labels[numbers], np.int32), min(size, len(images) - start)


@jax.jit
def ascend(
    classifier: Callable[[jax.Array], jax.Array],
    adversarial: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    eps: float,
    alpha: float,
) -> jax.Array:
    """Takes one step of `perturb` from `adversarial`, and back into the box of `eps` around the images and [0, 1].

    Args:
        classifier: A pytree that can be called, as `jax.tree_util.Partial(function)`.
        adversarial: Floats in [0, 1]. [N, H, W, 3]
        images: Where it started. [N, H, W, 3]
        labels: [N]
        eps: As in `perturb`.
        alpha: As in `perturb`.

    Returns:
        Floats in [0, 1]. [N, H, W, 3]
    """

    def loss(adversarial):
        # The sum, so that no image's gradient depends on how many others there are.
        return optax.softmax_cross_entropy_with_integer_labels(classifier(adversarial), labels).sum()

    moved = adversarial + alpha * jnp.sign(jax.grad(loss)(adversarial))
    return jnp.clip(images + jnp.clip(moved - images, -eps, eps), 0, 1)


@jax.jit
def _classify(classifier: Callable[[jax.Array], jax.Array], images: jax.Array) -> jax.Array:
    return classifier(images)


# Turner et al., "Label-Consistent Backdoor Attacks", 2019.
ATTACK = Definition(
    options={**PATCH_OPTIONS, "eps": 8.0, "alpha": 1.5, "steps": 100},
    draw=draw,
    trigger=badnets.trigger,
    rate=0.25,
    candidates=poisoning.target_images,
    poison=poison,
    needs_classifier=True,
)
