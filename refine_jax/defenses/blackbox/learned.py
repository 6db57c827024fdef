"""What a black-box defense has learned, asked of the victim once more, and put in front of it."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from refine_jax.batches import map_batches
from refine_jax.classifier import Classifier
from refine_jax.datasets.images import Split
from refine_jax.defenses import refine
from refine_jax.defenses.blackbox.oracle import Oracle
from refine_jax.defenses.contract import Fitted
from refine_jax.defenses.mapping import remap
from refine_jax.files import hash_arrays
from refine_jax.keys import named_key
from refine_jax.networks.unet import UNet
from refine_jax.training.checkpoints import read
from refine_jax.training.journal import Journal
from refine_jax.training.parallel import ONE_DEVICE, Execution

# Of images that a classifier of this project answers at once.
BATCH_SIZE = 250
# Beside the checkpoints of a defense's parts: what was counted beforehand, which a part of it may have been spent for.
PLAN = "plan.json"


@dataclasses.dataclass(frozen=True)
class Learned:
    """What stands in front of a victim and behind it, whatever the victim is.

    Attributes:
        unet: The module.
        unet_variables: The trained U-Net's.
        permutation: Output mapping. int32 [K]
        seconds: Spent training.
        images_per_second: Of the last training.
        parameters: How many numbers were trained.
        findings: JSON values: queries, calls, and how far copy, victim and defended victim agree.
        steps: Of the trainings, by the names of the parts.
    """

    unet: UNet
    unet_variables: Any
    permutation: jax.Array
    seconds: float
    images_per_second: float | None
    parameters: int
    findings: Mapping[str, Any]
    steps: Mapping[str, int] = dataclasses.field(default_factory=dict)


# (oracle, images uint8 [N, H, W, 3], settings, seed, journal, execution) -> Learned
Learn = Callable[[Oracle, Any, Mapping[str, Any], int, Journal | None, Execution], Learned]


def transform(unet: UNet, variables: Any, images: jax.Array, *, train: bool = False) -> tuple[jax.Array, Any]:
    """Input transformation, T(x) = clip(U-Net(x), 0, 1), as in `refine.transform`; it looks at no classifier."""
    nobody: Any = None
    return refine.transform(unet, variables, nobody, images, None, train=train)


def classes(answers: np.ndarray) -> np.ndarray:
    """The class that each answer says, probabilities or labels.  [N, K] or [N] -> int [N]"""
    return answers.argmax(axis=1) if answers.ndim == 2 else answers


# Weights are arguments, so that defenses that differ in them share a program.
@jax.jit
def _transformed(images: jax.Array, behind: "Behind") -> jax.Array:
    scale = 255 if images.dtype == jnp.uint8 else 1
    return behind.transform(images.astype(jnp.float32) / scale)


def apply(behind: Any, images: np.ndarray, batch_size: int) -> np.ndarray:
    """Returns T(x) of images of any number, in batches of one size.  uint8 or float [N, H, W, 3] -> float32"""
    return map_batches(_transformed, images, (behind,), size=batch_size)


def agreement_behind(
    oracle: Oracle, unet: UNet, variables: Any, permutation: jax.Array, images: Any, count: int, key: jax.Array
) -> float | None:
    """Shows the victim some of the transformed images.

    Args:
        oracle: The victim; the budget decides how many are shown, if there is not enough left for all.
        unet: The module.
        variables: The trained U-Net's.
        permutation: Output mapping. Integers [K]
        images: Clean, of which the victim was asked before. uint8 [N, H, W, 3]
        count: How many to show.
        key: For the choice.

    Returns:
        The share of them that the defended victim gives the class that the victim alone does; None of none.
    """
    drawn = np.asarray(jax.random.permutation(key, len(images)))[:count]
    images = np.asarray(images.take(np.sort(drawn), axis=0))
    behind = Behind(None, variables, permutation, unet, oracle.answers, images.shape[1:3])
    transformed = apply(behind, images, oracle.batch_size)
    count = oracle.affordable(transformed)
    if not count:
        return None
    answered = np.asarray(permutation)[classes(oracle(transformed[:count]))]
    return float((answered == classes(oracle(images[:count]))).mean())


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Behind:
    """A classifier of this project behind what was learned of it as of a black box; a pytree.

    Attributes:
        classifier: Of which only what `answers` says is looked at.
        unet_variables: The trained U-Net's.
        permutation: Output mapping. int32 [K]
        unet: The module.
        answers: 'probabilities' or 'labels'.
        image_size: (H, W) of the images that it was trained on.
    """

    classifier: Any
    unet_variables: Any
    permutation: jax.Array
    unet: UNet = dataclasses.field(metadata={"static": True})
    answers: str = dataclasses.field(metadata={"static": True})
    image_size: tuple[int, int] = dataclasses.field(metadata={"static": True})

    def parts(self) -> dict[str, Any]:
        """Returns what was learned and drawn."""
        return {"unet_variables": self.unet_variables, "permutation": self.permutation}

    def transform(self, images: jax.Array) -> jax.Array:
        """T(x) of images, float in [0, 1].  [N, H, W, 3] -> [N, H, W, 3]"""
        return transform(self.unet, self.unet_variables, images)[0]

    def __call__(self, images: jax.Array) -> jax.Array:
        """Probabilities after the output mapping, 0 and 1 where there are only labels.  [N, H, W, 3] -> [N, K]"""
        answers = answered(self.classifier, self.transform(images), self.answers)
        if self.answers == "labels":
            answers = jax.nn.one_hot(answers, len(self.permutation))
        return remap(answers, self.permutation)


def answered(classifier: Any, images: jax.Array, answers: str) -> jax.Array:
    """What a classifier says to whom it lets see no more than `answers`.  [N, H, W, 3] -> [N, K] or [N]"""
    logits = classifier(images)
    return jax.nn.softmax(logits) if answers == "probabilities" else logits.argmax(axis=-1)


_answered = jax.jit(lambda images, classifier, answers: answered(classifier, images, answers), static_argnums=2)


def as_function(classifier: Classifier, answers: str) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a classifier as a function that only answers."""
    return lambda images: map_batches(_answered, images, (classifier, answers), size=BATCH_SIZE)


def fitting(learn: Learn) -> Callable[..., Fitted]:
    """Returns the `fit` of a defense of the registry, in which the classifier handed in is asked as a service is."""

    def fit(
        classifier: Classifier,
        clean: Split,
        settings: Mapping[str, Any],
        seed: int,
        num_classes: int,
        journal: Journal | None = None,
        execution: Execution = ONE_DEVICE,
    ) -> Fitted:
        """Learns from the classifier's answers; arguments as in `registry`."""
        answers = settings.get("answers", "probabilities")
        with Oracle(
            as_function(classifier, answers),
            num_classes,
            clean.images.shape[1:3],
            answers=answers,
            batch_size=BATCH_SIZE,
            budget=settings["budget"],
            retries=0,
            cache=None if journal is None else journal.checkpoints / "answers",
            victim=None if journal is None else journal.identity.get("victim_sha256"),
        ) as oracle:
            learned = learn(oracle, clean.images, settings, seed, journal, execution)
        image_size = clean.images.shape[1:3]
        behind = Behind(
            classifier, learned.unet_variables, learned.permutation, learned.unet, oracle.answers, image_size
        )
        took = (learned.seconds, learned.images_per_second, learned.parameters)
        parts = {} if journal is None else {_folder_of(part): steps for part, steps in learned.steps.items()}
        return Fitted(behind, *took, parts=parts, findings=learned.findings)

    return fit


def load(
    checkpoints: pathlib.Path, classifier: Classifier, settings: Mapping[str, Any], image_size: tuple[int, int]
) -> Behind:
    """Returns what `fit` has come to."""
    arrays, _ = read(checkpoints_of(checkpoints, "unet"))
    variables = {"params": arrays["params"], "batch_stats": arrays["batch_stats"]}
    unet = UNet(width=settings["width"], depth=settings["depth"])
    permutation = jnp.asarray(arrays["permutation"])
    return Behind(classifier, variables, permutation, unet, settings.get("answers", "probabilities"), image_size)


def checkpoints_of(folder: pathlib.Path, part: str) -> pathlib.Path:
    """Where the checkpoints of a part lie, in the defense's folder of them."""
    return folder / _folder_of(part)


def _folder_of(part: str) -> str:
    return f"{part}/checkpoints"


def journal_of(journal: Journal | None, part: str, oracle: Oracle, answers: np.ndarray) -> Journal | None:
    """Returns the journal of a part of a defense, which is of the victim that has given just these answers.

    Args:
        journal: Of the defense.
        part: Of it.
        oracle: The victim.
        answers: What it says of the clean images, as many as it was asked of. [N, K] or [N]
    """
    if journal is None:
        return None
    said = hash_arrays({"classes": classes(answers).astype(np.int64)})  # probabilities may differ in their last digits
    answered = {"num_classes": oracle.num_classes, "answers": oracle.answers, "shown": oracle.shown}
    identity = {**journal.identity, "answered": {**answered, "images": len(answers), "sha256": said}}
    return dataclasses.replace(journal, checkpoints=checkpoints_of(journal.checkpoints, part), identity=identity)


def check_key(seed: int) -> jax.Array:
    """For the choice of the images that are shown to the victim in the end."""
    return named_key(seed, "blackbox/checked")
