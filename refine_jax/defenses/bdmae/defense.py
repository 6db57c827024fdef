"""The defense 'bdmae': the classifier is shown images whose suspicious parts were restored."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from refine_jax.classifier import Classifier
from refine_jax.datasets.images import Split
from refine_jax.defenses import chance
from refine_jax.defenses.bdmae.autoencoder import Restorer
from refine_jax.defenses.bdmae.pretraining import pretrain
from refine_jax.defenses.bdmae.restoration import ImageDraws, purify
from refine_jax.defenses.bdmae.settings import DEFAULTS as DEFAULTS
from refine_jax.defenses.bdmae.settings import Search, network
from refine_jax.defenses.bdmae.settings import check as check
from refine_jax.defenses.bdmae.settings import shared_batches as shared_batches
from refine_jax.defenses.contract import Fitted, Needs
from refine_jax.interop import mae_weights
from refine_jax.keys import named_key
from refine_jax.training import loop
from refine_jax.training.checkpoints import read
from refine_jax.training.parallel import ONE_DEVICE, Execution

# Clean images train the small autoencoder; with published weights none are looked at.
NEEDS = Needs(gradients=False, labels=False, clean_images=True)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Restored:
    """A classifier that is shown restored images; a pytree.

    Attributes:
        classifier: As it was given.
        restorer: The autoencoder.
        key: Of what is drawn for an image; uint32 [2], the data of a key.
        search: How a trigger is looked for.
        image_size: (H, W).
    """

    classifier: Classifier
    restorer: Restorer
    key: jax.Array
    search: Search = dataclasses.field(metadata={"static": True})
    image_size: tuple[int, int] = dataclasses.field(metadata={"static": True})
    permutation = None

    def parts(self) -> dict[str, Any]:
        """Returns what was learned, here or elsewhere, and drawn."""
        return {"params": self.restorer.params, "key": self.key}

    def transform(self, images: jax.Array) -> jax.Array:
        """What the classifier is shown of images.  Float in [0, 1] [N, H, W, 3] -> the same"""
        draws = ImageDraws(jax.random.wrap_key_data(self.key), images)
        return purify(self.restorer, self.classifier, images, draws, self.search)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Probabilities.  Float images in [0, 1] [N, H, W, 3] -> [N, K]"""
        return jax.nn.softmax(self.classifier(self.transform(images)))


def fit(
    classifier: Classifier,
    clean: Split,
    settings: Mapping[str, Any],
    seed: int,
    num_classes: int,
    journal: loop.Journal | None = None,
    execution: Execution = ONE_DEVICE,
) -> Fitted:
    """Reads an autoencoder, or trains a small one.

    Args:
        classifier: Stays as it is.
        clean: Images; their labels are not looked at, and with a checkpoint nor are they.
        settings: The section 'defense.bdmae' of a configuration.
        seed: For everything that is drawn.
        num_classes: Not looked at.
        journal: Where to leave checkpoints and metrics.
        execution: On which devices, and how.

    Returns:
        The classifier that is shown restored images; what that took; which autoencoder it is ('mae').
    """
    key, image_size = named_key(seed, "bdmae/key"), clean.images.shape[1:3]
    if settings["mae_checkpoint"] is not None:
        defended = _published(chance.keep(key, journal), classifier, settings, image_size)
        findings = {"mae": pathlib.Path(settings["mae_checkpoint"]).name}
        return Fitted(defended, steps=None if journal is None else 0, findings=findings)
    data = jax.random.key_data(key)
    outcome = pretrain(clean, settings, seed, {"key": data}, journal, execution)
    defended = _small(outcome.state.params, data, classifier, settings, image_size)
    findings = {"mae": f"a small one, trained on {len(clean)} clean images"}
    return dataclasses.replace(Fitted.of(defended, outcome), findings=findings)


def load(
    checkpoints: pathlib.Path, classifier: Classifier, settings: Mapping[str, Any], image_size: tuple[int, int]
) -> Restored:
    """Returns the defended classifier that `fit` has left; arguments as in `registry`.

    Published weights are not kept, but read again.
    """
    if settings["mae_checkpoint"] is not None:
        return _published(chance.read_kept(checkpoints), classifier, settings, image_size)
    arrays, _ = read(checkpoints)
    return _small(arrays["params"], jnp.asarray(arrays["key"]), classifier, settings, image_size)


def _published(
    key: jax.Array, classifier: Classifier, settings: Mapping[str, Any], image_size: tuple[int, int]
) -> Restored:
    mae = mae_weights.load(settings["mae_checkpoint"])
    restorer = Restorer(mae.variables["params"], mae.module, (mae.side, mae.side))
    return Restored(classifier, restorer, key, Search.of(settings), image_size)


def _small(
    params: Any, key: jax.Array, classifier: Classifier, settings: Mapping[str, Any], image_size: tuple[int, int]
) -> Restored:
    restorer = Restorer(params, network(settings), image_size)
    return Restored(classifier, restorer, key, Search.of(settings), image_size)
