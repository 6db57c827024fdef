"""BTI-DBF (P): a purifier in front of the classifier takes the trigger out of an image.

    x ---> preprocessing ---> + noise ---> purifier ---> network, frozen ---> p

In every round the trigger is inverted anew, past the purifier that there is (`inversion.py`), and the purifier learns
to undo it: of images, some of them triggered, it has to make what the classifier says the true class of, with the
features of the clean ones.

Source: Xu et al., Towards Reliable and Efficient Backdoor Trigger Inversion via Decoupling Benign Features, ICLR
    2024; its released program, btidbfp.py.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from refine_jax import mapped
from refine_jax.classifier import Classifier
from refine_jax.datasets.images import Split
from refine_jax.defenses.bti_dbf import losses
from refine_jax.defenses.bti_dbf import settings as own_settings
from refine_jax.defenses.bti_dbf.inversion import Inversion, found, half, noisy, require_halves
from refine_jax.defenses.bti_dbf.phases import Phases, carried, checkpoints_of
from refine_jax.defenses.bti_dbf.settings import LATER as LATER
from refine_jax.defenses.bti_dbf.settings import STRENGTH as STRENGTH
from refine_jax.defenses.bti_dbf.settings import check as check
from refine_jax.defenses.bti_dbf.settings import check_strength as check_strength
from refine_jax.defenses.bti_dbf.settings import strengths as strengths
from refine_jax.defenses.contract import Fitted, Needs
from refine_jax.keys import named_key
from refine_jax.networks.generator import Generator
from refine_jax.training import loop
from refine_jax.training.checkpoints import read
from refine_jax.training.parallel import ONE_DEVICE, Execution
from refine_jax.training.state import count_parameters

DEFAULTS = {**own_settings.PURIFICATION, "sweep": tuple}  # of rounds
NEEDS = Needs(gradients=True, labels=True, clean_images=True)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Purified:
    """A classifier behind a purifier; a pytree.

    Attributes:
        classifier: As it was given.
        params: The purifier's.
        key: Of the noise; uint32 [2], the data of a key.
        generator: The purifier's module.
        noise: Its deviation.
        image_size: (H, W) of the images that it was trained on.
    """

    classifier: Classifier
    params: Any
    key: jax.Array
    generator: Generator = dataclasses.field(metadata={"static": True})
    noise: float = dataclasses.field(metadata={"static": True})
    image_size: tuple[int, int] = dataclasses.field(metadata={"static": True})
    permutation = None

    def parts(self) -> dict[str, Any]:
        """Returns what was learned and drawn."""
        return {"params": self.params, "key": self.key}

    def __call__(self, images: jax.Array) -> jax.Array:
        """Probabilities.  Float images in [0, 1] [N, H, W, 3] -> [N, K]"""
        inputs = noisy(self.classifier.preprocess(images), images, jax.random.wrap_key_data(self.key), self.noise)
        purified: Any = self.generator.apply({"params": self.params}, inputs)
        return jax.nn.softmax(self.classifier.logits(purified))


def fit(
    classifier: Classifier,
    clean: Split,
    settings: Mapping[str, Any],
    seed: int,
    num_classes: int,
    journal: loop.Journal | None = None,
    execution: Execution = ONE_DEVICE,
) -> Fitted:
    """Trains a purifier for a classifier.

    Args:
        classifier: Stays as it is.
        clean: Images and their labels.
        settings: The section 'defense.bti_dbf_p' of a configuration.
        seed: For everything that is drawn.
        num_classes: K.
        journal: Where to leave checkpoints and metrics.
        execution: On which devices, and how.

    Returns:
        The classifier behind the last round's purifier; what that took; the target class found in the first round.

    Raises:
        SettingError: The classifier's features cannot be seen.
    """
    require_halves(classifier)
    phases = Phases("bti_dbf_p", clean, settings, seed, journal, execution)
    inversion = Inversion(phases, classifier, num_classes)
    inversion.pretrain()
    state, step = inversion.state, phases.step("purification", _objective(inversion, settings), inversion.tx)
    key = jax.random.key_data(named_key(seed, "bti_dbf/noise"))
    findings: Mapping[str, Any] = {}
    for number in range(1, settings["rounds"] + 1):
        if number == 1:
            inversion.invert(number, classifier)
            findings = found(inversion.answers(classifier))
        else:
            inversion.invert(number, classifier, findings["target_class"], state.params)
        data = {"classifier": classifier, "generator": inversion.state.params}
        given = (data, settings["purification_epochs"], settings["learning_rate"], {"key": key})
        state = carried(phases.train(f"purification{number}", step, state, *given))
    image_size = clean.images.shape[1:3]
    defended = Purified(classifier, state.params, key, inversion.generator, settings["noise"], image_size)
    return Fitted(
        defended,
        phases.seconds,
        phases.images_per_second,
        2 * count_parameters(state.params) + inversion.mask_size,
        parts=phases.parts,
        findings=findings,
    )


def load(
    checkpoints: pathlib.Path, classifier: Classifier, settings: Mapping[str, Any], image_size: tuple[int, int]
) -> Purified:
    """Returns the defended classifier whose trainings `fit` has left.

    Args:
        checkpoints: The folder that they are in.
        classifier: That was defended.
        settings: The section 'defense.bti_dbf_p' of a configuration, as it was trained with, or with fewer rounds.
        image_size: (H, W) of the images that it was trained on.
    """
    arrays, _ = read(checkpoints_of(checkpoints, f"purification{settings['rounds']}"))
    generator = Generator(settings["width"], settings["depth"])
    return Purified(classifier, arrays["params"], jnp.asarray(arrays["key"]), generator, settings["noise"], image_size)


def _objective(inversion: Inversion, settings: Mapping[str, Any]):
    def on(axis_name: str | None):
        network = inversion.network()

        def objective(params, batch_stats, data, images, labels, key):
            inputs, variables = data["classifier"].preprocess(images), data["classifier"].variables
            choice_key, noise_key = jax.random.split(key)
            shown = inversion.trigger_some(data["generator"], inputs, choice_key, axis_name)
            noise = mapped.draw(
                lambda n: jax.random.normal(noise_key, (n, *inputs.shape[1:]), inputs.dtype), len(inputs), axis_name
            )
            both = (inputs, inversion.generate(params, shown + settings["noise"] * noise))
            features = [half(network, "features", variables, x) for x in both]
            logits = half(network, "head", variables, features[1])
            bound = settings["purification_norm_bound"]
            loss, parts = losses.purification(features, both, logits, labels, bound, axis_name)
            return loss, (batch_stats, parts)

        return objective

    return on
