"""What defenses have in common that show the classifier another image than the one that came, and train nothing."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import chex
import jax
import jax.numpy as jnp

from refine_jax.classifier import Classifier
from refine_jax.datasets.images import Split
from refine_jax.defenses.contract import Fitted, Needs
from refine_jax.training.journal import Journal
from refine_jax.training.parallel import ONE_DEVICE, Execution

NEEDS = Needs(gradients=False, labels=False, clean_images=False)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Transformed:
    """A classifier that is shown transformed images; a pytree, so that it can be handed to a jitted function.

    Attributes:
        classifier: As it was given.
        strength: Arrays that say how much the images are changed; not static, so that one compiled program serves all.
        drawn: Arrays that were drawn, and kept.
        operation: (images float in [0, 1], **strength, **drawn) -> images in [0, 1], of the same shape.
        image_size: (H, W).
    """

    classifier: Classifier
    strength: Mapping[str, Any]
    drawn: Mapping[str, Any]
    operation: Callable[..., jax.Array] = dataclasses.field(metadata={"static": True})
    image_size: tuple[int, int] = dataclasses.field(metadata={"static": True})
    permutation: ClassVar[None] = None

    def parts(self) -> dict[str, Any]:
        """Returns what was drawn."""
        return dict(self.drawn)

    def transform(self, images: jax.Array) -> jax.Array:
        """What the classifier is shown of images.  Float in [0, 1] [N, H, W, 3] -> the same"""
        chex.assert_type(images, float)  # operations reckon with [0, 1]
        return self.operation(images, **self.strength, **self.drawn)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Probabilities of images.  Float, RGB, in [0, 1] [N, H, W, 3] -> [N, K]"""
        return jax.nn.softmax(self.classifier(self.transform(images)))


def fit_nothing(load: Callable[..., Transformed]) -> Callable[..., Fitted]:
    """Returns the `fit` of a defense that neither trains nor draws anything, but only is set up by its `load`."""

    def fit(
        classifier: Classifier,
        clean: Split,
        settings: Mapping[str, Any],
        seed: int,
        num_classes: int,
        journal: Journal | None = None,
        execution: Execution = ONE_DEVICE,
    ) -> Fitted:
        """Sets the defense up; arguments as in `registry`."""
        return Fitted(load(None, classifier, settings, clean.images.shape[1:3]))

    return fit


def apply_operators(images: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Makes each image's columns, then its rows, anew: two small matrix products, as resizing and blurring are.

    Args:
        images: [N, H, W, C]
        rows: Which rows make up each new one. [h, H]
        columns: Likewise. [w, W]

    Returns:
        [N, h, w, C]
    """
    precision = jax.lax.Precision.HIGHEST
    images = jnp.einsum("ij,njwc->niwc", rows.astype(images.dtype), images, precision=precision)
    return jnp.einsum("ij,nhjc->nhic", columns.astype(images.dtype), images, precision=precision)
