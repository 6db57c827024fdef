"""What the victim sees of images: the features before its last layer, in two dimensions."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from refine_jax.batches import map_batches
from refine_jax.defenses import refine

# Images of each kind whose features are computed.
MOST = 1_000


@dataclasses.dataclass(frozen=True, eq=False)
class Projection:
    """Features of benign and triggered images on their first two principal components.

    Attributes:
        benign: [n, 2]
        triggered: [m, 2]; None where no trigger is known.
        explained: Share of the variance that each component has. [2]
    """

    benign: np.ndarray
    triggered: np.ndarray | None
    explained: np.ndarray


def evenly(count: int, most: int = MOST) -> np.ndarray:
    """Returns which of `count` images are taken: at most `most`, spread evenly."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def feature_function(classifier: Any, defended: Any = None) -> Callable[[np.ndarray], np.ndarray] | None:
    """Returns what computes the victim's features of images, or of transformed ones.

    Args:
        classifier: The victim.
        defended: Whose `transform` comes first; None: nothing does.

    Returns:
        (images uint8 [N, H, W, 3]) -> [N, D], a feature map averaged over its places; None where the classifier has no
        `features`, as a function of the user's own.
    """
    if not hasattr(getattr(classifier, "network", None), "features"):
        return None

    def features(parts: tuple[Any, Any], images: jax.Array) -> jax.Array:
        classifier, defended = parts
        shown = images.astype(jnp.float32) / 255
        prepared = classifier.preprocess(shown)
        if defended is not None:
            transformed = defended.transform(shown)
            direct = isinstance(defended, refine.Defended) and defended.settings.unet_input == "normalized"
            prepared = transformed if direct else classifier.preprocess(transformed)
        found: Any = classifier.network.apply(classifier.variables, prepared, train=False, method="features")
        return found.reshape(found.shape[0], -1, found.shape[-1]).mean(axis=1)

    compiled = jax.jit(features)
    return lambda images: map_batches(lambda batch: compiled((classifier, defended), batch), images)


def project(benign: np.ndarray, triggered: np.ndarray | None) -> Projection:
    """Puts features on the first two principal components of all of them.

    Args:
        benign: [n, D]
        triggered: [m, D]; None where no trigger is known.
    """
    from sklearn.decomposition import PCA  # costs a second to import

    everything = benign if triggered is None else np.concatenate([benign, triggered])
    fitted = PCA(n_components=min(2, *everything.shape), svd_solver="full").fit(everything.astype(np.float64))
    places = fitted.transform(everything)
    shares = np.nan_to_num(fitted.explained_variance_ratio_)
    if places.shape[1] < 2:
        places, shares = np.pad(places, ((0, 0), (0, 1))), np.pad(shares, (0, 1))
    return Projection(places[: len(benign)], None if triggered is None else places[len(benign) :], shares)
