"""BTI-DBF (U): the classifier is trained until the inverted trigger means nothing to it.

In every round the trigger of the classifier as it is then is inverted (`inversion.py`), and the classifier learns
what triggered images really show, with the features that it has of the clean ones.

Source: Xu et al., Towards Reliable and Efficient Backdoor Trigger Inversion via Decoupling Benign Features, ICLR
    2024; its released program, btidbfu.py.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import optax

from refine_jax.classifier import Classifier
from refine_jax.datasets.images import Split
from refine_jax.defenses.bti_dbf import losses
from refine_jax.defenses.bti_dbf import settings as own_settings
from refine_jax.defenses.bti_dbf.inversion import (
    Inversion,
    device_key,
    found,
    half_training,
    require_halves,
    with_variables,
)
from refine_jax.defenses.bti_dbf.phases import Phases, carried, checkpoints_of, fresh_state
from refine_jax.defenses.bti_dbf.settings import LATER as LATER
from refine_jax.defenses.bti_dbf.settings import STRENGTH as STRENGTH
from refine_jax.defenses.bti_dbf.settings import check as check
from refine_jax.defenses.bti_dbf.settings import check_strength as check_strength
from refine_jax.defenses.bti_dbf.settings import strengths as strengths
from refine_jax.defenses.contract import Fitted, Needs
from refine_jax.training import loop
from refine_jax.training.checkpoints import read
from refine_jax.training.parallel import ONE_DEVICE, Execution
from refine_jax.training.state import count_parameters

DEFAULTS = {**own_settings.UNLEARNING, "sweep": tuple}  # of rounds
NEEDS = Needs(gradients=True, labels=True, clean_images=True)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Unlearned:
    """A classifier that has unlearned its backdoor; a pytree.

    Attributes:
        classifier: With the new variables.
        image_size: (H, W) of the images that it was trained on.
    """

    classifier: Classifier
    image_size: tuple[int, int] = dataclasses.field(metadata={"static": True})
    permutation = None

    def parts(self) -> dict[str, Any]:
        """Returns what was learned."""
        return {"variables": self.classifier.variables}

    def __call__(self, images: jax.Array) -> jax.Array:
        """Probabilities.  Float images in [0, 1] [N, H, W, 3] -> [N, K]"""
        return jax.nn.softmax(self.classifier(images))


def fit(
    classifier: Classifier,
    clean: Split,
    settings: Mapping[str, Any],
    seed: int,
    num_classes: int,
    journal: loop.Journal | None = None,
    execution: Execution = ONE_DEVICE,
) -> Fitted:
    """Trains the backdoor out of a copy of a classifier.

    Args:
        classifier: Stays as it is.
        clean: Images and their labels.
        settings: The section 'defense.bti_dbf_u' of a configuration.
        seed: For everything that is drawn.
        num_classes: K.
        journal: Where to leave checkpoints and metrics.
        execution: On which devices, and how.

    Returns:
        The last round's classifier; what that took; the target class found in the first round.

    Raises:
        SettingError: The classifier's features cannot be seen.
    """
    require_halves(classifier)
    phases = Phases("bti_dbf_u", clean, settings, seed, journal, execution)
    inversion = Inversion(phases, classifier, num_classes)
    inversion.pretrain()
    tx = optax.adam(settings["unlearning_learning_rate"])
    step = phases.step("unlearning", _objective(inversion, classifier), tx)
    params = classifier.variables["params"]
    state = fresh_state(params, classifier.variables.get("batch_stats", {}), tx.init(params))
    findings: Mapping[str, Any] = {}
    for number in range(1, settings["rounds"] + 1):
        current = with_variables(classifier, state.variables)
        if number == 1:
            inversion.invert(number, current)
            findings = found(inversion.answers(current))
        else:
            inversion.invert(number, current, findings["target_class"])
        given = ({"generator": inversion.state.params}, settings["unlearning_epochs"])
        state = carried(phases.train(f"unlearning{number}", step, state, *given, settings["unlearning_learning_rate"]))
    trained = (count_parameters(state.params), count_parameters(inversion.state.params), inversion.mask_size)
    defended = Unlearned(with_variables(classifier, state.variables), clean.images.shape[1:3])
    took = (phases.seconds, phases.images_per_second, sum(trained))
    return Fitted(defended, *took, parts=phases.parts, findings=findings)


def load(
    checkpoints: pathlib.Path, classifier: Classifier, settings: Mapping[str, Any], image_size: tuple[int, int]
) -> Unlearned:
    """Returns the classifier whose trainings `fit` has left.

    Args:
        checkpoints: The folder that they are in.
        classifier: That was given to it.
        settings: The section 'defense.bti_dbf_u' of a configuration, as it was trained with, or with fewer rounds.
        image_size: (H, W) of the images that it was trained on.
    """
    arrays, _ = read(checkpoints_of(checkpoints, f"unlearning{settings['rounds']}"))
    variables = {"params": arrays["params"], "batch_stats": arrays["batch_stats"]}
    return Unlearned(with_variables(classifier, variables), image_size)


def _objective(inversion: Inversion, classifier: Classifier):
    def on(axis_name: str | None):
        network = inversion.network(axis_name)

        def objective(params, batch_stats, data, images, labels, key):
            choice_key, dropout_key = jax.random.split(key)
            keys = jax.random.split(device_key(dropout_key, axis_name), 3)
            inputs = classifier.preprocess(images)
            both = (inputs, inversion.trigger_some(data["generator"], inputs, choice_key, axis_name))
            features = []
            for shown, own in zip(both, keys[:2], strict=True):
                variables = {"params": params, "batch_stats": batch_stats}
                rows, batch_stats = half_training(network, "features", variables, shown, own)
                features.append(rows)
            variables = {"params": params, "batch_stats": batch_stats}
            logits, batch_stats = half_training(network, "head", variables, features[1], keys[2])
            loss, parts = losses.unlearning((features[0], features[1]), logits, labels)
            return loss, (batch_stats, parts)

        return objective

    return on
