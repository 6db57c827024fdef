"""REFINE: a U-Net in front of a frozen classifier, a permutation of the classes behind it.

    x ---> T(x) = clip(U-Net(x), 0, 1) ---> classifier, frozen ---> p ---> q[pi(i)] = p[i]

The U-Net learns from clean images without labels. What the classifier itself says of an image is the
pseudo-label, y = argmax F(x), and the loss asks two things of the transformed one:

    cross-entropy           q must say y: the classifier, shown T(x), must answer pi^-1(y), another class than
                            it gives to x itself, so T has to make new patterns and none of the old ones, a
                            trigger among them, goes on meaning what it meant;
    supervised contrastive  transformed images of one y shall be alike, those of different y apart.

References:
    Chen et al., "REFINE: Inversion-Free Backdoor Defense via Model Reprogramming", ICLR 2025, sections 4.1 to
    4.3; the authors' released program, refine.py.
"""

import dataclasses
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from refine_jax import mapped
from refine_jax.classifier import Classifier
from refine_jax.datasets import corruptions, stream
from refine_jax.datasets.augment import random_flip, random_grayscale, random_resized_crop
from refine_jax.datasets.feed import Feed, batch_images
from refine_jax.datasets.images import Split
from refine_jax.defenses import pseudo_labels
from refine_jax.defenses.contract import Fitted, Needs
from refine_jax.defenses.mapping import MAPPINGS, remap
from refine_jax.defenses.refine_objective import objective as objective
from refine_jax.defenses.refine_objective import transform as transform
from refine_jax.defenses.refine_objective import transformed_logits as transformed_logits
from refine_jax.defenses.refine_settings import DEFAULTS as DEFAULTS
from refine_jax.defenses.refine_settings import LATER as LATER
from refine_jax.defenses.refine_settings import UNET_INPUTS as UNET_INPUTS
from refine_jax.defenses.refine_settings import Objective as Objective
from refine_jax.defenses.refine_settings import check as check
from refine_jax.defenses.refine_settings import clean_rows as clean_rows
from refine_jax.defenses.refine_settings import complete as complete
from refine_jax.errors import SettingError
from refine_jax.keys import named_key
from refine_jax.networks.unet import UNet
from refine_jax.training import loop, optimizer
from refine_jax.training.checkpoints import read
from refine_jax.training.parallel import ONE_DEVICE, Execution, Step
from refine_jax.training.state import TrainState, create_train_state

logger = logging.getLogger(__name__)

NEEDS = Needs(gradients=True, labels=False, clean_images=True)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Defended:
    """A classifier behind its defense; a pytree, so that it can be handed to a jitted function.

    Attributes:
        classifier: As it was given.
        unet_variables: The trained U-Net's.
        permutation: Output mapping. int32 [K]
        unet: The module.
        settings: What it was trained for.
        image_size: (H, W) of the images that it was trained on.
    """

    classifier: Classifier
    unet_variables: Any
    permutation: jax.Array
    unet: UNet = dataclasses.field(metadata={"static": True})
    settings: Objective = dataclasses.field(metadata={"static": True})
    image_size: tuple[int, int] = dataclasses.field(metadata={"static": True})

    def parts(self) -> dict[str, Any]:
        """Returns what was learned and drawn."""
        return {"unet_variables": self.unet_variables, "permutation": self.permutation}

    def transform(self, images: jax.Array) -> jax.Array:
        """T(x) of images, float in [0, 1].  [N, H, W, 3] -> [N, H, W, 3]"""
        transformed, _ = transform(self.unet, self.unet_variables, self.classifier, images, self.settings, train=False)
        return transformed

    def __call__(self, images: jax.Array) -> jax.Array:
        """Probabilities after the output mapping.

        Args:
            images: Float, RGB, in [0, 1]. [N, H, W, 3]

        Returns:
            [N, K]; the classes mean what they mean to the classifier.
        """
        logits = transformed_logits(self.classifier, self.transform(images), self.settings)
        return remap(jax.nn.softmax(logits), self.permutation)


def train_step(unet: UNet, tx: optax.GradientTransformation, settings: Objective, axis_name: str | None = None):
    """Returns the function (state, data, batch) -> (state, metrics) that trains the U-Net by one batch.

    `data` holds 'classifier', 'permutation' and 'key'; images and indices as in `feed.batch_images`. Inside a mapped
    axis the batch is a device's part, and the U-Net is made with the name of the axis too.
    """

    def step(state: TrainState, data: Mapping[str, Any], batch: Mapping[str, jax.Array]):
        originals = batch_images(data, batch)
        images = augment(originals, named_key(data["key"], state.step), axis_name=axis_name)
        given = (unet, tx, state, data["classifier"], images, data["permutation"], settings)
        return update(*given, originals if settings.pseudo_labels == "original" else None, axis_name=axis_name)

    return step


def update(
    unet: UNet,
    tx: optax.GradientTransformation,
    state: TrainState,
    classifier: Classifier,
    images: jax.Array,
    permutation: jax.Array,
    settings: Mapping[str, Any] | Objective | None,
    originals: jax.Array | None = None,
    *,
    axis_name: str | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step of the optimizer on one batch, as it is; arguments as in `objective`.

    Returns:
        (state, metrics): 'loss', 'classification', 'contrastive' and 'gradient_norm' (L2, over all parameters),
        before the step, and 'agreement', the share of images of which the defended classifier says the pseudo-label.
    """

    def loss_fn(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        given = (unet, variables, classifier, images, permutation, settings)
        return objective(*given, originals=originals, axis_name=axis_name)

    (total, aux), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    sources = jnp.argsort(permutation)[aux["pseudo_labels"]]
    metrics = {
        "loss": total,
        "classification": aux["classification"],
        "contrastive": aux["contrastive"],
        "agreement": (aux["logits"].argmax(axis=-1) == sources).mean(),
    }
    gradients, metrics = mapped.average((gradients, metrics), axis_name)
    metrics["gradient_norm"] = optax.tree.norm(gradients)
    return state.updated(tx, gradients, aux["batch_stats"]), metrics


def augment(images: jax.Array, key: jax.Array, *, axis_name: str | None = None) -> jax.Array:
    """Crop of 80 to 100 % of the area, resized back; flip; grayscale with probability 0.2.  [N, H, W, 3]"""
    crop_key, flip_key, gray_key = jax.random.split(key, 3)
    images = random_resized_crop(images, crop_key, axis_name=axis_name)
    images = random_flip(images, flip_key, axis_name=axis_name)
    return random_grayscale(images, gray_key, axis_name=axis_name)


def fit(
    classifier: Classifier,
    clean: Split,
    settings: Mapping[str, Any],
    seed: int,
    num_classes: int,
    journal: loop.Journal | None = None,
    execution: Execution = ONE_DEVICE,
    *,
    stage: str = "refine",
) -> Fitted:
    """Trains a U-Net for a classifier.

    Args:
        classifier: Stays as it is.
        clean: Images; their labels are not looked at.
        settings: The section 'defense' of a configuration, whole.
        seed: For mapping, weights, choice, corruption and order of the images, augmentation.
        num_classes: K.
        journal: Where to leave checkpoints and metrics.
        execution: On which devices, and how.
        stage: Name of the training, for people and in metrics.jsonl.

    Returns:
        The defended classifier, with the last step's parameters; and what the training took. findings: what
        `pseudo_labels.drawn_by_augmentation` has found, where the pseudo-labels are those of augmented images.

    Raises:
        SettingError: The contrastive loss is to compare features, and the classifier's cannot be seen.
    """
    training = Training.of(classifier, settings, execution)
    images: Any = take_fraction(clean.images, settings["data_fraction"], named_key(seed, "refine/data"))
    if settings["clean_corruption"] != corruptions.NONE:
        how = (settings["clean_corruption"], settings["clean_severity"])
        images = corruptions.Corrupted(images, *how, named_key(seed, "refine/corruption"))
    findings = training.findings(images, seed)
    on_device, streamed = stream.place(stage, images, execution.feed, execution.own())
    feed = training.feed(len(images), seed, streamed)
    schedule, tx = training.descent(feed.steps_per_epoch)
    image_size = images.shape[1:3]
    state = create_train_state(training.unet, tx, named_key(seed, "refine/weights"), image_size)
    drawn = training.draw(seed, num_classes)
    data: dict[str, Any] = {**on_device, "classifier": frozen(classifier, execution), **drawn}
    step = Step(lambda axis_name: training.step(tx, axis_name), execution)
    kept = {"permutation": drawn["permutation"]}
    outcome = loop.fit(stage, step, state, data, feed, schedule, journal, kept)
    fitted = Fitted.of(training.defended(outcome.state, kept["permutation"], image_size), outcome)
    return dataclasses.replace(fitted, findings=findings)


@dataclasses.dataclass(frozen=True)
class Training:
    """What a training of a U-Net is, whatever the seed.

    Attributes:
        classifier: As it was given.
        settings: The section 'defense' of a configuration, whole.
        objective: What the U-Net is asked for.
        unet: The module.
        execution: On which devices, and how.
    """

    classifier: Classifier
    settings: Mapping[str, Any]
    objective: Objective
    unet: UNet
    execution: Execution

    @classmethod
    def of(cls, classifier: Classifier, settings: Mapping[str, Any], execution: Execution) -> "Training":
        """Returns it; arguments and errors as of `fit`."""
        wanted = Objective.of(settings)
        splits = isinstance(classifier, Classifier) and classifier.has_halves
        if wanted.contrastive_features == "features" and not splits:
            allowed = "pixels or logits with a classifier that does not split into features and head"
            raise SettingError("defense.contrastive_features", "features", allowed)
        if wanted.unet_input == "normalized" and not isinstance(classifier, Classifier):
            allowed = "unit with a function, whose preprocessing is its own and cannot come before the U-Net"
            raise SettingError("defense.unet_input", "normalized", allowed)
        return cls(classifier, settings, wanted, UNet(width=settings["width"], depth=settings["depth"]), execution)

    def findings(self, images: Any, seed: int) -> Mapping[str, Any]:
        """Looks before any work at what augmentation does to the classifier's answers, where these become labels.

        Returns:
            From `pseudo_labels.drawn_by_augmentation`; what is too much for labels is said in the log. Nothing where
            the labels are those of the original images.
        """
        if self.objective.pseudo_labels != "augmented":
            return {}
        key = named_key(seed, "refine/labels")
        found = pseudo_labels.drawn_by_augmentation(self.classifier, images, augment, key)
        if pseudo_labels.is_too_much(found):
            logger.warning("%s", pseudo_labels.warning(found))
        return found

    def feed(self, count: int, seed: int, streamed: Any) -> Feed:
        """Returns a seed's order of `count` images; `streamed` as in `Feed`."""
        return Feed(
            count,
            self.settings["batch_size"],
            named_key(seed, "refine/order"),
            keep_last=False,
            images=streamed,
            workers=self.execution.workers,
        )

    def descent(self, steps_per_epoch: int) -> tuple[optimizer.Schedule, optax.GradientTransformation]:
        """Returns the learning rate, and the optimizer that has it."""
        schedule = optimizer.create_schedule(self.settings, steps_per_epoch)
        return schedule, optimizer.create_optimizer(self.settings, schedule)

    def draw(self, seed: int, num_classes: int) -> dict[str, jax.Array]:
        """Returns what a seed's steps need beside classifier and images: output mapping, key of the augmentation."""
        mapping = draw_mapping(self.settings, seed, num_classes)
        return {"permutation": mapping, "key": named_key(seed, "refine/augmentation")}

    def step(self, tx: optax.GradientTransformation, axis_name: str | None):
        """Returns `train_step` as it is run, inside a mapped axis."""
        trained = self.execution.computing(self.unet.clone(remat=self.execution.remat))
        return train_step(mapped.on_axis(trained, axis_name), tx, self.objective, axis_name)

    def defended(self, state: TrainState, permutation: jax.Array, image_size: tuple[int, int]) -> Defended:
        """Returns the defended classifier that a training has come to."""
        return Defended(self.classifier, state.variables, permutation, self.unet, self.objective, image_size)


def draw_mapping(settings: Mapping[str, Any], seed: int, num_classes: int) -> jax.Array:
    """Returns the output mapping that a defense of these settings and this seed has.  int32 [K]"""
    own = seed if settings["mapping_seed"] is None else settings["mapping_seed"]
    return MAPPINGS[settings["mapping"]](named_key(own, "refine/mapping"), num_classes)


def frozen(classifier: Classifier, execution: Execution) -> Classifier:
    """Returns the classifier as a U-Net is trained in front of it."""
    kept = classifier.rematerialized() if execution.remat else classifier
    return kept if execution.precision == "float32" else kept.computing_in(execution.precision)


def load(
    checkpoints: pathlib.Path, classifier: Classifier, settings: Mapping[str, Any], image_size: tuple[int, int]
) -> Defended:
    """Returns the defended classifier whose training `fit` has left in a folder of checkpoints.

    Args:
        checkpoints: The folder.
        classifier: That was defended.
        settings: The section 'defense' of a configuration, whole, as it was trained with.
        image_size: (H, W) of the images that it was trained on.
    """
    arrays, _ = read(checkpoints)
    variables = {"params": arrays["params"], "batch_stats": arrays["batch_stats"]}
    unet = UNet(width=settings["width"], depth=settings["depth"])
    permutation = jnp.asarray(arrays["permutation"])
    return Defended(classifier, variables, permutation, unet, Objective.of(settings), image_size)


def take_fraction(images: np.ndarray, fraction: float, key: jax.Array) -> np.ndarray:
    """Returns a share of the images, drawn from the key, in their order.  [N, H, W, 3] -> [n, H, W, 3]"""
    return images if fraction == 1 else images.take(fraction_rows(len(images), fraction, key), axis=0)


def fraction_rows(count: int, fraction: float, key: jax.Array) -> np.ndarray:
    """Returns the numbers of those images, of `count`.  Integers [n]"""
    if fraction == 1:
        return np.arange(count, dtype=np.int32)
    return np.sort(np.asarray(jax.random.permutation(key, count)[: round(fraction * count)]))
