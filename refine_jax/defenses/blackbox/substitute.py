"""REFINE by way of a substitute: a local copy of the victim is trained from its answers, and the copy is defended.

    clean images ---> victim ---> answers ---> copy ---> REFINE ---> T, pi
    x ---> T(x) ---> victim ---> p ---> q[pi(i)] = p[i]

The victim is asked about the clean images alone, and in the end about a few transformed ones, to see how far what was
learned of the copy holds of the victim itself.

References:
    Papernot et al., "Practical Black-Box Attacks against Machine Learning", ASIA CCS 2017, section 4 (substitutes
    trained from labels); Hinton et al., "Distilling the Knowledge in a Neural Network", 2015 (from probabilities).
"""

import logging
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from refine_jax import mapped
from refine_jax.batches import map_batches
from refine_jax.classifier import Classifier
from refine_jax.datasets import stream
from refine_jax.datasets.feed import Feed, batch_images
from refine_jax.datasets.images import Split
from refine_jax.defenses import refine
from refine_jax.defenses.blackbox import settings as own_settings
from refine_jax.defenses.blackbox.learned import (
    BATCH_SIZE,
    PLAN,
    Learned,
    agreement_behind,
    check_key,
    classes,
    fitting,
    journal_of,
)
from refine_jax.defenses.blackbox.learned import load as load
from refine_jax.defenses.blackbox.oracle import BudgetSpent, Oracle
from refine_jax.defenses.blackbox.settings import check as check
from refine_jax.defenses.blackbox.settings import shared_batches as shared_batches
from refine_jax.defenses.contract import Needs
from refine_jax.errors import WorkdirError
from refine_jax.files import read_record, write_record
from refine_jax.keys import named_key
from refine_jax.training import loop
from refine_jax.training.journal import Journal
from refine_jax.training.optimizer import create_optimizer, create_schedule
from refine_jax.training.parallel import ONE_DEVICE, Execution, Step
from refine_jax.training.state import TrainState, count_parameters, create_train_state

logger = logging.getLogger(__name__)

DEFAULTS = own_settings.SUBSTITUTE
NEEDS = Needs(gradients=False, labels=False, clean_images=True)


def learn(
    oracle: Oracle,
    images: Any,
    settings: Mapping[str, Any],
    seed: int,
    journal: Journal | None = None,
    execution: Execution = ONE_DEVICE,
) -> Learned:
    """Trains a copy of a victim, and a U-Net for the copy.

    Args:
        oracle: The victim. Where its budget does not reach for all images, the copy is of the first of them.
        images: Clean. uint8 [N, H, W, 3]
        settings: `DEFAULTS` with other values; whatever an oracle says of itself is not looked at.
        seed: For everything that is drawn.
        journal: Where to leave checkpoints and metrics; those of copy and U-Net have folders of their own.
        execution: On which devices, and how.

    Returns:
        What was learned. findings: queries, calls, answers; images, of which the victim was asked; agreement, the
        share of images that were held out of the copy's training on which it says what the victim does, None of none;
        agreement_trained, of those that were not; agreement_behind, see `learned.agreement_behind`; and what
        `refine.fit` has found out about the copy, with "copy_" before its name.

    Raises:
        BudgetSpent: It does not reach for a batch of the copy's training.
        WorkdirError: The journal is of a copy of another number of images, or of other answers to them.
    """
    images = refine.take_fraction(images, settings["data_fraction"], named_key(seed, "blackbox/data"))
    count = oracle.affordable(images, keep=settings["checked"])
    held_out = round(settings["copy"]["held_out"] * count)
    if count - held_out < settings["copy"]["batch_size"]:
        raise BudgetSpent(
            f"the budget of {oracle.budget} queries leaves {count} images for the copy, {settings['checked']} for the "
            f"check of the outcome set aside: allowed: enough for a batch of {settings['copy']['batch_size']}"
        )
    _hold_to_count(journal, count)
    asked = images[:count]
    answers = oracle(asked)
    order = np.asarray(jax.random.permutation(named_key(seed, "blackbox/held_out"), count))
    kept, held = np.sort(order[held_out:]), np.sort(order[:held_out])
    copy, outcome = train_copy(
        asked.take(kept, axis=0),
        answers[kept],
        oracle.num_classes,
        settings["copy"],
        seed,
        journal_of(journal, "copy", oracle, answers),
        execution,
    )
    says = classes_of(copy, asked)
    agrees = says == classes(answers)
    shares = {"agreement": _share(agrees[held]), "agreement_trained": _share(agrees[kept])}
    logger.info("refine_substitute: the copy says what the victim does: %s", shares)
    fitted = refine.fit(
        copy,
        Split.unlabeled(images),
        own_settings.of_unet(settings),
        seed,
        oracle.num_classes,
        journal_of(journal, "unet", oracle, answers),
        execution,
        stage="refine_substitute",
    )
    behind = fitted.defended
    shown = (behind.unet, behind.unet_variables, behind.permutation)
    shares["agreement_behind"] = agreement_behind(oracle, *shown, asked, settings["checked"], check_key(seed))
    asking = {"queries": oracle.queries, "calls": oracle.calls, "answers": oracle.answers, "images": count}
    of_copy = {f"copy_{name}": value for name, value in fitted.findings.items()}  # of the victim they say nothing
    return Learned(
        *shown,
        outcome.seconds + fitted.train_seconds,
        fitted.train_images_per_second,
        count_parameters(outcome.state.params) + fitted.parameters,
        {**asking, **shares, **of_copy},
        {"copy": int(outcome.state.step), "unet": fitted.steps or 0},
    )


fit = fitting(learn)


def _hold_to_count(journal: Journal | None, count: int) -> None:
    """Refuses, before a query is paid, to go on with a copy of fewer or more images than the budget reaches for."""
    if journal is None:
        return
    path = journal.checkpoints / PLAN
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_record(path, {"images": count})
    elif (kept := read_record(path, ("images",))["images"]) != count:
        raise WorkdirError(
            f"{journal.checkpoints.parent} is of a copy of {kept} images, and the budget reaches for {count} now: use "
            "the budget of then, or another folder"
        )


def train_copy(
    images: Any,
    answers: np.ndarray,
    num_classes: int,
    settings: Mapping[str, Any],
    seed: int,
    journal: Journal | None = None,
    execution: Execution = ONE_DEVICE,
) -> tuple[Classifier, loop.Outcome]:
    """Trains a network to answer as a victim has.

    Args:
        images: uint8 [N, H, W, 3]
        answers: Probabilities [N, K], or labels [N].
        num_classes: K.
        settings: `settings.COPY` with other values.
        seed: For weights, order and augmentation.
        journal: Where to leave checkpoints and metrics.
        execution: On which devices, and how.

    Returns:
        (the copy, whose preprocessing is by these images' mean and deviation; the training's outcome).
    """
    image_size = images.shape[1:3]
    network, options = own_settings.network_of(settings, num_classes, image_size, remat=execution.remat)
    stage = "refine_substitute copy"
    on_device, streamed = stream.place(stage, images, execution.feed, execution.own())
    feed = Feed(
        len(images),
        settings["batch_size"],
        named_key(seed, "blackbox/copy/order"),
        keep_last=False,
        images=streamed,
        workers=execution.workers,
    )
    schedule = create_schedule(settings, feed.steps_per_epoch)
    tx = create_optimizer(settings, schedule)
    state = create_train_state(network, tx, named_key(seed, "blackbox/copy/weights"), image_size)
    mean, std = statistics(images)
    targets = answers if answers.ndim == 2 else np.eye(num_classes, dtype=np.float32)[answers]
    data = {
        **on_device,
        "targets": jnp.asarray(targets, jnp.float32),
        "mean": jnp.asarray(mean),
        "std": jnp.asarray(std),
        "key": named_key(seed, "blackbox/copy/augmentation"),
    }
    trained = execution.computing(network)
    step = Step(lambda axis_name: train_step(mapped.on_axis(trained, axis_name), tx, axis_name), execution)
    outcome = loop.fit(stage, step, state, data, feed, schedule, journal)
    variables = outcome.state.variables
    return Classifier(settings["name"], variables, num_classes, mean, std, options=options), outcome


def train_step(network: nn.Module, tx: optax.GradientTransformation, axis_name: str | None = None):
    """Returns the function (state, data, batch) -> (state, metrics) that trains the copy by one batch.

    `data` holds 'targets' [N, K], 'mean' and 'std' [3], and 'key'; images and indices as in `feed.batch_images`. The
    loss is the cross-entropy against what the victim says of the image before it is augmented.
    """

    def step(state: TrainState, data: Mapping[str, Any], batch: Mapping[str, jax.Array]):
        augment_key, dropout_key = jax.random.split(named_key(data["key"], state.step))
        # As the copy will be shown them when the U-Net is trained.
        images = refine.augment(batch_images(data, batch), augment_key, axis_name=axis_name)
        images, targets = (images - data["mean"]) / data["std"], data["targets"][batch["indices"]]
        if axis_name is not None:
            dropout_key = jax.random.fold_in(dropout_key, jax.lax.axis_index(axis_name))

        def loss_fn(params):
            logits, changed = network.apply(
                {"params": params, "batch_stats": state.batch_stats},
                images,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": dropout_key},
            )
            agreement = (logits.argmax(axis=-1) == targets.argmax(axis=-1)).mean()
            loss = optax.softmax_cross_entropy(logits, targets).mean()
            return loss, (changed.get("batch_stats", {}), agreement)

        (loss, (batch_stats, agreement)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        gradients, metrics = mapped.average((gradients, {"loss": loss, "agreement": agreement}), axis_name)
        metrics["gradient_norm"] = optax.tree.norm(gradients)
        return state.updated(tx, gradients, batch_stats), metrics

    return step


def statistics(images: Any) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and deviation of each channel, in units of [0, 1].  uint8 [N, H, W, 3] -> ([3], [3])"""
    counts = np.zeros((3, 256), np.int64)  # of each value in each channel
    for start in range(0, len(images), 1024):
        batch = np.asarray(images[start : start + 1024])
        counts += np.stack([np.bincount(batch[..., channel].ravel(), minlength=256) for channel in range(3)])
    values, shares = np.arange(256) / 255, counts / counts.sum(axis=1, keepdims=True)
    mean = shares @ values
    std = np.sqrt(np.maximum(shares @ values**2 - mean**2, 1e-6))  # of one color: not divided by 0
    return tuple(mean.tolist()), tuple(std.tolist())  # type: ignore[return-value]


_answer = jax.jit(lambda images, classifier: classifier(images.astype(jnp.float32) / 255).argmax(axis=-1))


def classes_of(classifier: Classifier, images: Any) -> np.ndarray:
    """Returns the class that a classifier gives to each image.  uint8 [N, H, W, 3] -> int [N]"""
    return map_batches(_answer, images, (classifier,), size=BATCH_SIZE)


def _share(hits: np.ndarray) -> float | None:
    return float(hits.mean()) if len(hits) else None
