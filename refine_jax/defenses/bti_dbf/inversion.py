"""Trigger inversion: benign features are decoupled from the others, and a generator learns to change those others.

    pretraining     the generator learns to give back what it is shown
    mask            of the last feature map, what tells the class is told from what does not
    inversion       the generator learns to move the features that do not, and to leave the image and the others alone

Whatever the generator makes of clean images is what the classifier's backdoor answers to, if it has one; the class
that it mostly says is its target.

The generator takes and gives images as the network takes them, preprocessed, as in the released program: its bounds
are in these units.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from refine_jax import mapped
from refine_jax.classifier import Classifier
from refine_jax.defenses.bti_dbf import losses
from refine_jax.defenses.bti_dbf.phases import Phases, carried, fresh_state
from refine_jax.defenses.chance import image_keys
from refine_jax.errors import SettingError
from refine_jax.keys import named_key
from refine_jax.networks import layers
from refine_jax.networks.generator import Generator
from refine_jax.training.state import create_train_state


def require_halves(classifier: Any) -> None:
    """Refuses a classifier whose last feature map cannot be seen.

    Raises:
        SettingError: It is a function, or its network has no 'features' and 'head'.
    """
    if not (isinstance(classifier, Classifier) and classifier.has_halves):
        shown = classifier.describe() if hasattr(classifier, "describe") else classifier
        allowed = "for BTI-DBF a Classifier whose network has the methods 'features' and 'head'"
        raise SettingError("classifier", shown, allowed)


def with_variables(classifier: Classifier, variables: Any) -> Classifier:
    """Returns the classifier with other variables."""
    return Classifier.from_description(classifier.describe(), variables)


def half(network: Any, name: str, variables: Any, x: jax.Array) -> jax.Array:
    """Returns what 'features' or 'head' of a network makes of `x` in inference mode, in at least float32."""
    return layers.at_least_float32(network.apply(variables, x, train=False, method=name))


def half_training(network: Any, name: str, variables: Any, x: jax.Array, key: jax.Array) -> tuple[jax.Array, Any]:
    """Returns the same in training mode, and the new batch_stats; `key` is for dropout."""
    rngs = {"dropout": key}
    outputs, changed = network.apply(variables, x, train=True, method=name, mutable=["batch_stats"], rngs=rngs)
    return layers.at_least_float32(outputs), changed.get("batch_stats", {})


def device_key(key: jax.Array, axis_name: str | None) -> jax.Array:
    """Returns a key for dropout, of each device its own."""
    return key if axis_name is None else jax.random.fold_in(key, jax.lax.axis_index(axis_name))


class Inversion:
    """Finds the trigger of a classifier, and keeps the generator from round to round.

    Args:
        phases: Of the defense.
        classifier: Whose network and preprocessing it is.
        num_classes: K.

    Attributes:
        generator: The module.
        tx: Optimizer of a generator.
        state: Of the generator: parameters and optimizer; None before the pretraining.
        mask_size: How many features there are.
    """

    def __init__(self, phases: Phases, classifier: Classifier, num_classes: int):
        settings = phases.settings
        self.generator = Generator(settings["width"], settings["depth"])
        self.tx = optax.adam(settings["learning_rate"])
        self.state: Any = None
        self.mask_size = 0
        self._phases, self._classifier, self._num_classes = phases, classifier, num_classes
        self._mask_tx = optax.adam(settings["mask_learning_rate"])
        self._trained = phases.execution.computing(self.generator)

    def network(self, axis_name: str | None = None) -> Any:
        """Returns the classifier's network as it computes while something is trained."""
        execution = self._phases.execution
        classifier = self._classifier.rematerialized() if execution.remat else self._classifier
        return mapped.on_axis(execution.computing(classifier.network), axis_name)

    def generate(self, params: Any, inputs: jax.Array) -> jax.Array:
        """Returns what a generator makes of preprocessed images while something is trained."""
        images: Any = self._trained.apply({"params": params}, inputs)
        return images

    def pretrain(self) -> None:
        """Trains the generator to give back what it is shown."""
        settings = self._phases.settings
        size = jax.eval_shape(self._classifier.preprocess, self._images(1)).shape[1:3]
        fresh = create_train_state(self.generator, self.tx, named_key(self._phases.seed, "bti_dbf/generator"), size)
        step = self._phases.step("pretraining", self._reconstruction, self.tx)
        data = {"classifier": self._classifier}
        given = (data, settings["pretraining_epochs"], settings["learning_rate"])
        trained = self._phases.train("pretraining", step, fresh, *given)
        # The reference program starts its optimizers anew after the pretraining.
        self.state = fresh_state(trained.params, {}, self.tx.init(trained.params))

    def invert(self, number: int, classifier: Classifier, target: int | None = None, purifier: Any = None) -> None:
        """Decouples the features of a classifier and trains the generator further.

        Args:
            number: Of the round, from 1.
            classifier: As it is in this round.
            target: Class that the trigger leads to, once it is known: the generator is trained for it too.
            purifier: Parameters of the purifier that the trigger has to get past; None: there is none.
        """
        settings, seed = self._phases.settings, self._phases.seed
        batch_stats = classifier.variables.get("batch_stats", {})
        shape = jax.eval_shape(
            lambda images: half(self.network(), "features", classifier.variables, classifier.preprocess(images)),
            self._images(1),
        ).shape[1:]
        self.mask_size = math.prod(shape)
        free = {"mask": jax.random.normal(named_key(seed, "bti_dbf/mask", number), shape)}
        state = fresh_state(free, batch_stats, self._mask_tx.init(free))
        step = self._phases.step("mask", self._decoupling, self._mask_tx)
        given = ({"classifier": classifier}, settings["mask_epochs"], settings["mask_learning_rate"])
        state = self._phases.train(f"mask{number}", step, state, *given)

        # As in the reference program, the inverted classifier has the statistics that it came to meanwhile.
        variables = {**classifier.variables, **({"batch_stats": state.batch_stats} if batch_stats else {})}
        data: dict[str, Any] = {
            "classifier": with_variables(classifier, variables),
            "mask": losses.feature_mask(state.params["mask"]),
        }
        if target is not None:
            data["target"] = jnp.asarray(target, jnp.int32)
        if purifier is not None:
            data["purifier"] = purifier
        step = self._phases.step(("inversion", *sorted(data)), self._inversion, self.tx)
        given = (data, settings["inversion_epochs"], settings["learning_rate"])
        trained = self._phases.train(f"inversion{number}", step, self.state, *given)
        self.state = carried(trained)

    def answers(self, classifier: Classifier) -> np.ndarray:
        """Returns how many of the clean images, triggered, a classifier assigns to each class.  Integers [K]"""
        key, noise = named_key(self._phases.seed, "bti_dbf/detection"), self._phases.settings["noise"]

        @jax.jit
        def predict(classifier, params, images):
            images = images.astype(jnp.float32) / 255
            inputs = noisy(classifier.preprocess(images), images, key, noise)
            return classifier.logits(self.generator.apply({"params": params}, inputs)).argmax(axis=-1)

        images, size = self._phases.images, self._phases.settings["batch_size"]
        counts = np.zeros(self._num_classes, np.int64)
        for first in range(0, len(images), size):
            places = np.arange(first, first + size) % len(images)  # the last batch is filled up with the first images
            classes = np.asarray(predict(classifier, self.state.params, images.take(places, axis=0)))
            counts += np.bincount(classes[: len(images) - first], minlength=self._num_classes)
        return counts

    def trigger_some(self, params: Any, inputs: jax.Array, key: jax.Array, axis_name: str | None = None) -> jax.Array:
        """Returns the inputs, of which a share, drawn anew, has gone through a generator.  [N, H, W, 3]"""
        devices = 1 if axis_name is None else jax.lax.axis_size(axis_name)
        total = len(inputs) * devices
        count = min(total, int(self._phases.settings["triggered_share"] * total + 1))
        chosen = jax.random.permutation(key, total)[:count]
        if axis_name is None:
            return inputs.at[chosen].set(self.generate(params, inputs[chosen]))
        # How many of them a device has is not known when the program is compiled.
        is_chosen = mapped.own_rows(jnp.zeros(total, bool).at[chosen].set(True), len(inputs), axis_name)
        return jnp.where(is_chosen[:, None, None, None], self.generate(params, inputs), inputs)

    def _images(self, count: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((count, *self._phases.images.shape[1:]), jnp.float32)

    def _reconstruction(self, axis_name: str | None):
        network = self.network()

        def objective(params, batch_stats, data, images, labels, key):
            del labels, key
            inputs, variables = data["classifier"].preprocess(images), data["classifier"].variables
            both = (inputs, self.generate(params, inputs))
            features = [half(network, "features", variables, x) for x in both]
            logits = [half(network, "head", variables, x) for x in features]
            loss, parts = losses.reconstruction(features, both, logits, axis_name)
            return loss, (batch_stats, parts)

        return objective

    def _decoupling(self, axis_name: str | None):
        network = self.network(axis_name)

        def objective(params, batch_stats, data, images, labels, key):
            inputs, variables = data["classifier"].preprocess(images), data["classifier"].variables
            mask = losses.feature_mask(params["mask"])
            keys = jax.random.split(device_key(key, axis_name), 3)
            logits = []
            features, batch_stats = half_training(network, "features", _with(variables, batch_stats), inputs, keys[0])
            for part, own in ((mask, keys[1]), (1 - mask, keys[2])):
                given = (_with(variables, batch_stats), part * features, own)
                rows, batch_stats = half_training(network, "head", *given)
                logits.append(rows)
            return losses.decoupling(logits[0], logits[1], labels), (batch_stats, {"mask_mean": mask.mean()})

        return objective

    def _inversion(self, axis_name: str | None):
        network, settings = self.network(), self._phases.settings

        def objective(params, batch_stats, data, images, labels, key):
            del labels, key
            inputs, variables = data["classifier"].preprocess(images), data["classifier"].variables
            triggered = self.generate(params, inputs)
            if "purifier" in data:
                triggered = self.generate(data["purifier"], triggered)
            both = (inputs, triggered)
            features = [half(network, "features", variables, x) for x in both]
            bounds = (settings["norm_bound"], settings["feature_bound"])
            loss, parts = losses.inversion(features, both, data["mask"], *bounds, axis_name)
            if "target" in data:
                logits = half(network, "head", variables, features[1])
                toward = losses.classification(logits, jnp.broadcast_to(data["target"], len(images)))
                loss, parts = loss + toward, {**parts, "target": toward}
            return loss, (batch_stats, parts)

        return objective


def noisy(inputs: jax.Array, images: jax.Array, key: jax.Array, deviation: float) -> jax.Array:
    """Adds normal noise to preprocessed images, drawn for each from what it shows.

    Args:
        inputs: [N, h, w, 3]
        images: That they were made of, float in [0, 1]. [N, H, W, 3]
        key: Of the defense.
        deviation: Of the noise, in units of the inputs.

    Returns:
        [N, h, w, 3]
    """
    draw = lambda key: jax.random.normal(key, inputs.shape[1:], inputs.dtype)  # noqa: E731
    return inputs + deviation * jax.vmap(draw)(image_keys(key, images))


def found(counts: np.ndarray) -> Mapping[str, Any]:
    """Returns what the answers to triggered images tell, as JSON values.

    Args:
        counts: From `Inversion.answers`. [K]

    Returns:
        'target_class', and 'target_share', the share of the images that was assigned to it.
    """
    target = int(counts.argmax())
    return {"target_class": target, "target_share": float(counts[target] / counts.sum())}


def _with(variables: Mapping[str, Any], batch_stats: Any) -> dict[str, Any]:
    return {**variables, "batch_stats": batch_stats}
