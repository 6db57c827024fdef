"""ShrinkPad: each image is shrunk, and put on black at a place that the attacker cannot foresee.

A trigger is no longer where, nor of the size, that the classifier has learned it to be.

References:
    Li et al., "Backdoor Attack in the Physical World", ICLR 2021 workshop on robust and reliable machine learning,
    section 4; BackdoorBox, core/defenses/ShrinkPad.py.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp

from refine_jax.classifier import Classifier
from refine_jax.datasets.images import Split
from refine_jax.defenses import chance, transformation
from refine_jax.defenses.contract import Fitted
from refine_jax.defenses.transformation import Transformed
from refine_jax.errors import SettingError
from refine_jax.keys import named_key
from refine_jax.training.journal import Journal
from refine_jax.training.parallel import ONE_DEVICE, Execution

DEFAULTS = {
    "pad": 4,  # pixels by which both sides become shorter; the reference's for 32 x 32
    "sweep": tuple,  # of pads; open: `strengths`
}
NEEDS = transformation.NEEDS
STRENGTH = "pad"


def strengths(image_size: tuple[int, int]) -> tuple[int, ...]:
    """Returns one to four sixteenths of the shorter side."""
    return tuple(pad for pad in (i * min(image_size) // 16 for i in range(1, 5)) if pad)


def check(prefix: str, settings: Mapping[str, Any], num_images: int, image_size: tuple[int, int]) -> None:
    """Refuses to shrink images by nothing, or to nothing.

    Args:
        prefix: Name of the section, for the error.
        settings: The section.
        num_images: Not looked at.
        image_size: (H, W).

    Raises:
        SettingError: `pad` is impossible.
    """
    largest = min(image_size) - 1
    if not 1 <= settings["pad"] <= largest:
        height, width = image_size
        raise SettingError(f"{prefix}.pad", settings["pad"], f"1 to {largest} for images of {height} x {width}")


def shrink_and_pad(
    images: jax.Array, rows: jax.Array, columns: jax.Array, pad: jax.Array, key: jax.Array
) -> jax.Array:
    """Shrinks images and puts each on black, at a place that depends on the key and on what it shows.

    Args:
        images: Float in [0, 1]. [N, H, W, 3]
        rows: From `shrinking`. [H, H]
        columns: Likewise. [W, W]
        pad: By how many pixels they shrink. Scalar
        key: The data of a key. uint32 [2]

    Returns:
        Of the same shape.
    """
    keys = chance.image_keys(jax.random.wrap_key_data(key), images)
    offsets = jax.vmap(lambda key: jax.random.randint(key, (2,), 0, pad + 1))(keys)  # top and left  [N, 2]
    return place(transformation.apply_operators(images, rows, columns), offsets)


def shrinking(side: int, pad: int) -> jax.Array:
    """The matrix that makes `side - pad` rows of `side`, bilinearly, and `pad` black ones below.  [side, side]

    Half-pixel centers, without antialiasing, as torchvision resized tensors when the reference was written.
    """
    shrunk = jax.image.resize(jnp.eye(side), (side - pad, side), "bilinear", antialias=False)
    return jnp.pad(shrunk, ((0, pad), (0, 0)))


def place(shrunk: jax.Array, offsets: jax.Array) -> jax.Array:
    """Moves images down and to the right over the black beyond them.

    Args:
        shrunk: [N, H, W, C]
        offsets: Top and left, up to as much as is black. Integers [N, 2]

    Returns:
        [N, H, W, C]
    """
    chex.assert_shape(offsets, (len(shrunk), 2))
    return jax.vmap(lambda image, offset: jnp.roll(image, offset, axis=(0, 1)))(shrunk, offsets)


def fit(
    classifier: Classifier,
    clean: Split,
    settings: Mapping[str, Any],
    seed: int,
    num_classes: int,
    journal: Journal | None = None,
    execution: Execution = ONE_DEVICE,
) -> Fitted:
    """Draws the key that the places follow from; nothing is trained.  Arguments as in `registry`."""
    key = chance.keep(named_key(seed, "shrinkpad/offsets"), journal)
    return Fitted(_defended(key, classifier, settings, clean.images.shape[1:3]), steps=None if journal is None else 0)


def load(
    checkpoints: pathlib.Path, classifier: Classifier, settings: Mapping[str, Any], image_size: tuple[int, int]
) -> Transformed:
    """Returns the defended classifier that `fit` has left the key of; arguments as in `registry`."""
    return _defended(chance.read_kept(checkpoints), classifier, settings, image_size)


def _defended(
    key: jax.Array, classifier: Classifier, settings: Mapping[str, Any], image_size: tuple[int, int]
) -> Transformed:
    pad = settings["pad"]
    rows, columns = (shrinking(side, pad) for side in image_size)
    strength = {"rows": rows, "columns": columns, "pad": jnp.int32(pad)}
    return Transformed(classifier, strength, {"key": key}, shrink_and_pad, image_size)
