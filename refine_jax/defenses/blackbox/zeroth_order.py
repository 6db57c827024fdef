"""REFINE without gradients of the victim: they are estimated from what it answers to images moved a little.

    x ---> U-Net ---> T(x) ---> T(x) +- mu u ---> victim ---> losses ---> estimate of dL / dT(x) ---> U-Net

The U-Net has too many parameters for estimates of its gradient. The loss depends on them by way of T(x) alone, so the
gradient is estimated with respect to T(x), image by image, and goes on from there by the chain rule, through a network
that is at hand. The contrastive loss looks at T(x), not at the victim: its gradient is exact.

It takes probabilities. A loss of labels alone is constant almost everywhere, and differences of it are 0.

References:
    Those of `estimate.py`; Tsai et al., "Transfer Learning without Knowing", ICML 2020 (reprogramming of a black box);
    Chen et al., REFINE, ICLR 2025, section 4.3 (the loss).
"""

import dataclasses
import logging
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from refine_jax.datasets import stream
from refine_jax.datasets.feed import Feed, batch_images
from refine_jax.defenses import refine
from refine_jax.defenses.blackbox import estimate
from refine_jax.defenses.blackbox import settings as own_settings
from refine_jax.defenses.blackbox.learned import (
    PLAN,
    Learned,
    agreement_behind,
    check_key,
    classes,
    fitting,
    journal_of,
    transform,
)
from refine_jax.defenses.blackbox.learned import load as load
from refine_jax.defenses.blackbox.oracle import BudgetSpent, Oracle
from refine_jax.defenses.blackbox.settings import check as check
from refine_jax.defenses.blackbox.settings import shared_batches as shared_batches
from refine_jax.defenses.contract import Needs
from refine_jax.defenses.mapping import derangement
from refine_jax.errors import SettingError
from refine_jax.files import read_record, write_record
from refine_jax.keys import named_key
from refine_jax.losses import l2_normalize, supervised_contrastive
from refine_jax.networks.unet import UNet
from refine_jax.training import loop
from refine_jax.training.compilation import compile_training
from refine_jax.training.journal import Journal
from refine_jax.training.optimizer import create_optimizer, create_schedule
from refine_jax.training.parallel import ONE_DEVICE, Execution, Step
from refine_jax.training.state import TrainState, count_parameters, create_train_state

logger = logging.getLogger(__name__)

DEFAULTS = own_settings.ZEROTH_ORDER
NEEDS = Needs(gradients=False, labels=False, clean_images=True)

# Services round: a probability of 0 counts as this one, and a loss is at most its negative logarithm.
_LEAST = 1e-6


def learn(
    oracle: Oracle,
    images: Any,
    settings: Mapping[str, Any],
    seed: int,
    journal: Journal | None = None,
    execution: Execution = ONE_DEVICE,
) -> Learned:
    """Trains a U-Net for a victim from its probabilities.

    Args:
        oracle: The victim. Training ends with the last whole step that its budget reaches for, counted beforehand: an
            answer to each image, 2 * directions for each image of a step, and the check of the outcome.
        images: Clean. uint8 [N, H, W, 3]
        settings: `DEFAULTS` with other values; whatever an oracle says of itself is not looked at.
        seed: For everything that is drawn.
        journal: Where to leave checkpoints and metrics.
        execution: How; on its first device alone.

    Returns:
        What was learned. findings: queries, calls, answers; steps, and steps_asked_for, which is more where the budget
        has ended the training; agreement_behind, see `learned.agreement_behind`.

    Raises:
        SettingError: The oracle gives labels alone.
        BudgetSpent: The budget does not reach for a single step.
    """
    if oracle.answers != "probabilities":
        raise SettingError("answers", oracle.answers, "probabilities; for labels there is refine_substitute")
    images = refine.take_fraction(images, settings["data_fraction"], named_key(seed, "blackbox/data"))
    execution = dataclasses.replace(execution, devices=1, steps_per_call=1)
    on_device, streamed = stream.place("refine_zeroth_order", images, execution.feed, execution.own())
    feed = Feed(
        len(images),
        settings["batch_size"],
        named_key(seed, "refine/order"),
        keep_last=False,
        images=streamed,
        workers=execution.workers,
    )
    wanted = settings["epochs"] * feed.steps_per_epoch
    steps = _plan(journal, oracle, images, settings, wanted)
    # The learning rate comes to its end with the training.
    epochs = math.ceil(steps / feed.steps_per_epoch)
    schedule = create_schedule({**settings, "epochs": epochs}, feed.steps_per_epoch)
    schedule = dataclasses.replace(schedule, steps=steps)
    tx = create_optimizer(settings, schedule)
    unet = UNet(width=settings["width"], depth=settings["depth"])
    state = create_train_state(unet, tx, named_key(seed, "refine/weights"), images.shape[1:3])
    permutation = derangement(named_key(seed, "refine/mapping"), oracle.num_classes)
    answers = oracle(images)
    data = {
        **on_device,
        "pseudo_labels": jnp.asarray(classes(answers)),
        "permutation": permutation,
        "key": named_key(seed, "refine/augmentation"),
    }
    trained = execution.computing(unet.clone(remat=execution.remat))
    step = AskingStep(oracle, trained, tx, settings, execution)
    kept = {"permutation": permutation}
    own_journal = journal_of(journal, "unet", oracle, answers)
    outcome = loop.fit("refine_zeroth_order", step, state, data, feed, schedule, own_journal, kept)
    variables = outcome.state.variables
    behind = agreement_behind(oracle, unet, variables, permutation, images, settings["checked"], check_key(seed))
    findings = {
        **{"queries": oracle.queries, "calls": oracle.calls, "answers": oracle.answers},
        **{"steps": steps, "steps_asked_for": wanted, "agreement_behind": behind},
    }
    parameters = count_parameters(outcome.state.params)
    took = (outcome.seconds, outcome.images_per_second, parameters)
    return Learned(unet, variables, permutation, *took, findings, {"unet": int(outcome.state.step)})


fit = fitting(learn)


def _plan(journal: Journal | None, oracle: Oracle, images: Any, settings: Mapping[str, Any], wanted: int) -> int:
    """Returns how many steps are trained, the same where a training is gone on with, and has spent a part already."""
    path = None if journal is None else journal.checkpoints / PLAN
    if path is not None and path.exists():
        return read_record(path, ("steps",))["steps"]
    cost = 2 * settings["directions"] * settings["batch_size"]
    steps = wanted
    if oracle.left is not None:
        before = oracle.missing(images) + settings["checked"]
        steps = min(wanted, (oracle.left - before) // cost)
        if steps < 1:
            raise BudgetSpent(
                f"the budget has {oracle.left} queries left: allowed: at least {before + cost}: an answer to each "
                f"clean image and {settings['checked']} to check the outcome, which are {before}, and {cost} a step"
            )
    if steps < wanted:
        logger.info("refine_zeroth_order: the budget reaches for %d of %d steps", steps, wanted)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_record(path, {"steps": steps})
    return steps


class AskingStep(Step):
    """A training step that asks the victim on its way: a program before, one after, and the oracle between them.

    The oracle is not called from within a program: it may take minutes, wait, or raise.

    Args:
        oracle: The victim.
        unet: The module that is trained.
        tx: The optimizer.
        settings: `DEFAULTS` with other values.
        execution: On one device, a step a call.
    """

    def __init__(
        self,
        oracle: Oracle,
        unet: UNet,
        tx: optax.GradientTransformation,
        settings: Mapping[str, Any],
        execution: Execution,
    ):
        super().__init__(lambda axis_name: train_step(unet, tx, settings), execution)
        self._oracle = oracle
        self._show = compile_training(lambda state, data, batch: shown(unet, state, data, batch, settings))

    def __call__(self, state: Any, data: Any, batch: Mapping[str, Any]) -> tuple[Any, dict[str, jax.Array]]:
        """Trains by one batch; arguments as of `Step`."""
        asked = np.asarray(self._show(state, data, batch))  # [2, D, B, H, W, 3]
        answers = self._oracle(asked.reshape(-1, *asked.shape[3:]))
        answers = answers.reshape(*asked.shape[:3], -1)  # [2, D, B, K]
        return super().__call__(state, {**data, "answers": answers}, batch)


def shown(
    unet: UNet, state: TrainState, data: Mapping[str, Any], batch: Mapping[str, jax.Array], settings: Mapping[str, Any]
) -> jax.Array:
    """What the victim is asked about in a step: T(x) moved along directions and against them.  [2, D, B, H, W, 3]"""
    images, key = _augmented(state, data, batch)
    transformed, _ = transform(unet, state.variables, images, train=True)
    drawn = estimate.draw_directions(key, settings["directions"], images.shape, settings["block"])
    return estimate.perturb(transformed, drawn, settings["smoothing"])


def train_step(unet: UNet, tx: optax.GradientTransformation, settings: Mapping[str, Any]):
    """Returns the function (state, data, batch) -> (state, metrics) that trains the U-Net by one batch.

    `data` holds 'pseudo_labels' [N], 'permutation' [K], 'key' and 'answers' [2, D, B, K], to what `shown` gave of the
    same state and batch; images and indices as in `feed.batch_images`.
    """
    smoothing, block = settings["smoothing"], settings["block"]

    def step(state: TrainState, data: Mapping[str, Any], batch: Mapping[str, jax.Array]):
        images, key = _augmented(state, data, batch)
        labels = data["pseudo_labels"][batch["indices"]]  # of the images before they are augmented
        sources = jnp.argsort(data["permutation"])[labels]  # pi^-1(y)  [B]
        likelihoods = data["answers"][:, :, jnp.arange(len(labels)), sources]  # [2, D, B]
        losses = -jnp.log(jnp.maximum(likelihoods, _LEAST))
        drawn = estimate.draw_directions(key, settings["directions"], images.shape, block)
        gradient = estimate.from_differences(losses, drawn, smoothing, block) / len(labels)  # of the mean

        def loss_fn(params):
            variables = {"params": params, "batch_stats": state.batch_stats}
            transformed, batch_stats = transform(unet, variables, images, train=True)
            features = l2_normalize(transformed.reshape(len(images), -1))[:, None]
            contrastive = supervised_contrastive(features, labels, settings["temperature"], repeats=2)
            # Its gradient with respect to T(x) is the estimate; its value means nothing.
            total = (gradient * transformed).sum() + settings["sup_weight"] * contrastive
            return total, (contrastive, batch_stats)

        gradients, (contrastive, batch_stats) = jax.grad(loss_fn, has_aux=True)(state.params)
        classification = losses.mean()
        metrics = {
            "loss": classification + settings["sup_weight"] * contrastive,
            "classification": classification,
            "contrastive": contrastive,
            "agreement": (data["answers"].argmax(axis=-1) == sources).mean(),
            "gradient_norm": optax.tree.norm(gradients),
        }
        return state.updated(tx, gradients, batch_stats), metrics

    return step


def _augmented(state: TrainState, data: Mapping[str, Any], batch: Mapping[str, jax.Array]):
    """The images of a step, and the key to its directions."""
    augment_key, key = jax.random.split(named_key(data["key"], state.step))
    return refine.augment(batch_images(data, batch), augment_key), key
