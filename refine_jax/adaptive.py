"""An attacker who knows REFINE, and trains the victim so that the trigger survives it.

Beside the victim F, a U-Net T is trained as the defender would train one, and what F learns of a batch it also learns
behind T and the output mapping pi:

    F    cross-entropy(F(x), y) + weight * cross-entropy(remap(F(T(x)), pi), y)      poisoned images and labels
    T    REFINE's objective, F frozen                                                images that no attack changed

The three strengths differ in the mapping that pi stands for: 'known' is the one that a defense of the run's seed
draws, 'guessed' is drawn by the attacker, 'unknown' is none at all, pi(i) = i. T is thrown away: what is left is a
victim as any other.

References:
    Chen et al., REFINE, ICLR 2025, claim resistance to adaptive attacks; docs/attacks.md says what is known of theirs.
    Tramer et al., On Adaptive Attacks to Adversarial Example Defenses, NeurIPS 2020: an adaptive attack aims at the
    defense's own objective.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from refine_jax import mapped, victim_step
from refine_jax.classifier import Classifier
from refine_jax.datasets.feed import batch_images
from refine_jax.defenses import refine
from refine_jax.defenses.mapping import derangement, identity
from refine_jax.errors import SettingError, choose
from refine_jax.keys import named_key
from refine_jax.losses import mapped_cross_entropy
from refine_jax.networks.unet import UNet
from refine_jax.training import optimizer
from refine_jax.training.state import TrainState, create_train_state

KNOWLEDGE = ("unknown", "guessed", "known")
UPDATES = ("joint", "turns")

# The section 'victim.adaptive' of a configuration, where a type stands for a field that is open.
DEFAULTS = {
    "knowledge": str,  # open: the attacker knows of no defense
    "updates": "joint",
    "weight": 1.0,
    # The U-Net's, as REFINE's.
    "width": refine.DEFAULTS["width"],
    "depth": refine.DEFAULTS["depth"],
    **{name: refine.DEFAULTS[name] for name in ("optimizer", "momentum", "weight_decay", "learning_rate")},
}

# What the attacker takes the defender's U-Net to be trained for.
_OBJECTIVE = refine.Objective.of(None)


@flax.struct.dataclass
class AdaptiveState(TrainState):
    """A victim's training together with the attacker's U-Net.

    Attributes:
        unet: The U-Net's training.
    """

    unet: TrainState


def check(settings: Mapping[str, Any]) -> None:
    """Refuses what is impossible with any images.

    Args:
        settings: The section 'victim.adaptive' of a configuration.

    Raises:
        SettingError: The first setting that is impossible.
    """
    choose("victim.adaptive.knowledge", settings["knowledge"], KNOWLEDGE)
    choose("victim.adaptive.updates", settings["updates"], UPDATES)
    if not 0 < settings["weight"] < np.inf:
        raise SettingError("victim.adaptive.weight", settings["weight"], "a number above 0")
    if settings["width"] < 1:
        raise SettingError("victim.adaptive.width", settings["width"], "1 or more")
    optimizer.check("victim.adaptive", {**refine.DEFAULTS, **_trained_with(settings)})


def check_images(victim: Mapping[str, Any], num_images: int, image_size: tuple[int, int]) -> None:
    """Refuses what is impossible with these images.

    Args:
        victim: The section 'victim' of a configuration, 'adaptive' among it.
        num_images: To train on.
        image_size: (H, W).

    Raises:
        SettingError: The U-Net is too deep, or would be shown a batch of one image.
    """
    depth, deepest = victim["adaptive"]["depth"], int(np.log2(min(image_size)))
    if not 1 <= depth <= deepest:
        allowed = f"1 to {deepest} for images of {image_size[0]} x {image_size[1]}"
        raise SettingError("victim.adaptive.depth", depth, allowed)
    if 1 in (victim["batch_size"], num_images % victim["batch_size"]):
        allowed = f"a size that leaves no batch of one of the {num_images} images, with victim.adaptive"
        raise SettingError("victim.batch_size", victim["batch_size"], allowed)


def assumed_mapping(knowledge: str, seed: int, num_classes: int) -> jax.Array:
    """Returns the output mapping that the attacker reckons with.

    Args:
        knowledge: One of `KNOWLEDGE`.
        seed: Of the run.
        num_classes: K.

    Returns:
        int32 [K]; of 'unknown' the identity, so that the classes stay what they are.
    """
    if knowledge == "known":
        return refine.draw_mapping(refine.DEFAULTS, seed, num_classes)
    draw = derangement if knowledge == "guessed" else identity
    return draw(named_key(seed, "victim/adaptive/mapping"), num_classes)


def create_unet(settings: Mapping[str, Any]) -> tuple[UNet, optax.GradientTransformation]:
    """Returns the attacker's U-Net and its optimizer, whose rate stays what it is: the victim never stops to move."""
    own = _trained_with(settings)
    unet = UNet(width=settings["width"], depth=settings["depth"])
    return unet, optimizer.create_optimizer(own, optax.constant_schedule(own["learning_rate"]))


def with_unet(
    state: TrainState, unet: UNet, tx: optax.GradientTransformation, seed: int, image_size: tuple[int, int]
) -> AdaptiveState:
    """Puts a fresh U-Net beside a victim's state."""
    own = create_train_state(unet, tx, named_key(seed, "victim/adaptive/weights"), image_size)
    return AdaptiveState(**vars(state), unet=own)


def train_step(
    network: nn.Module,
    tx: optax.GradientTransformation,
    augment: victim_step.Augmentation,
    unet: UNet,
    unet_tx: optax.GradientTransformation,
    freeze: Callable[[Any], Classifier],
    settings: Mapping[str, Any],
    axis_name: str | None = None,
):
    """Returns the function (state, data, batch) -> (state, metrics) that trains victim and U-Net by one batch.

    Args:
        network: The victim's.
        tx: Its optimizer.
        augment: As in `victim_step.train_step`.
        unet: The attacker's.
        unet_tx: Its optimizer.
        freeze: Variables of the victim -> the classifier that the U-Net is trained in front of.
        settings: The section 'victim.adaptive' of a configuration.
        axis_name: Mapped axis over which the batch is split; both networks have to be made with the same.

    `state` is an `AdaptiveState`. `data` is as in `victim_step.train_step`, with 'is_changed' [N], the images that the
    attack has changed in any way, and 'mapping' [K]. Metrics: 'loss', the whole; 'accuracy' as without the U-Net;
    'behind_unet', the second part of the loss without its weight; 'unet_loss'; 'gradient_norm', the victim's.
    """

    def step(state: AdaptiveState, data: Mapping[str, Any], batch: Mapping[str, jax.Array]):
        images, labels, dropout_key = victim_step.shown(data, batch, state.step, augment, axis_name)
        frozen = freeze(state.variables)
        clean = refine.augment(
            only_clean(batch_images(data, batch), data["is_changed"][batch["indices"]], axis_name),
            named_key(data["key"], "adaptive", state.step),
            axis_name=axis_name,
        )
        given = (unet, unet_tx, state.unet, frozen, clean, data["mapping"], _OBJECTIVE)
        trained, unet_metrics = refine.update(*given, axis_name=axis_name)
        met = trained if settings["updates"] == "turns" else state.unet
        behind, _ = refine.transform(unet, met.variables, frozen, images, _OBJECTIVE, train=False)
        # One batch, since the finished victim has one set of running statistics, for both kinds of images.
        both = (jnp.concatenate([images, behind]) - data["mean"]) / data["std"]  # [2B, H, W, 3]

        def loss_fn(params):
            logits, changed = network.apply(
                {"params": params, "batch_stats": state.batch_stats},
                both,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": dropout_key},
            )
            plain, mapped_logits = jnp.split(logits, 2)  # [B, K] each
            backdoor = optax.softmax_cross_entropy_with_integer_labels(plain, labels).mean()
            behind_unet = mapped_cross_entropy(mapped_logits, labels, data["mapping"])
            accuracy = (plain.argmax(axis=-1) == labels).mean()
            total = backdoor + settings["weight"] * behind_unet
            return total, (changed.get("batch_stats", {}), {"accuracy": accuracy, "behind_unet": behind_unet})

        (loss, (batch_stats, metrics)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        gradients, metrics = mapped.average((gradients, {"loss": loss, **metrics}), axis_name)
        metrics |= {"unet_loss": unet_metrics["loss"], "gradient_norm": optax.tree.norm(gradients)}
        return AdaptiveState(**vars(state.updated(tx, gradients, batch_stats)), unet=trained), metrics

    return step


def only_clean(images: jax.Array, is_changed: jax.Array, axis_name: str | None = None) -> jax.Array:
    """Puts a batch's unchanged images, one after another, in the places of those that the attack has changed.

    A defender trains on clean images, and a U-Net that is shown triggered ones learns to let the trigger through.
    Where all are changed they stay.

    Args:
        images: [B, H, W, 3]
        is_changed: Bool [B]
        axis_name: Mapped axis over which the batch is split.

    Returns:
        [B, H, W, 3]
    """
    whole, changed = (mapped.gather(rows, axis_name) for rows in (images, is_changed))
    order = jnp.argsort(changed, stable=True)  # the unchanged ones first
    unchanged = jnp.where(changed.all(), len(changed), len(changed) - changed.sum())
    nth = (jnp.cumsum(changed) - 1) % unchanged
    sources = jnp.where(changed, order[nth], jnp.arange(len(changed)))
    return whole[mapped.own_rows(sources, len(images), axis_name)]


def _trained_with(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: settings[name] for name in ("optimizer", "momentum", "weight_decay", "learning_rate")}
