"""A classifier as everyone else sees it: images in [0, 1] in, logits out, its preprocessing inside."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from refine_jax import networks
from refine_jax.errors import SettingError, choose

CHANNEL_ORDERS = ("RGB", "BGR")


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, init=False)
class Classifier:
    """A trained network with its weights and its own preprocessing.

    It is a pytree whose only leaves are the weights, so that it can be handed to a jitted function as an
    argument.

    Args:
        name: Network, one of `networks.names()`.
        variables: Its Flax variables, {'params': ..., 'batch_stats': ...}.
        num_classes: K.
        mean: Of each channel, in the order in which the network takes them, in units of [0, 1]. [3]
        std: Likewise, above 0. [3]
        channels: Order in which the network takes the channels, 'RGB' or 'BGR'. Images are RGB in any case and
            are turned around before they are normalized.
        input_size: (H, W) that the network takes, or one number; None: whatever size an image has.
        options: Of `networks.build`, such as {'width': 16}.

    Raises:
        SettingError: A value is impossible; which one and what is allowed.
    """

    name: str
    variables: Any
    num_classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    channels: str
    input_size: tuple[int, int] | None
    options: tuple[tuple[str, Any], ...]

    def __init__(
        self,
        name: str,
        variables: Any,
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        channels: str = "RGB",
        input_size: int | tuple[int, int] | None = None,
        options: Mapping[str, Any] = {},
    ):
        if isinstance(input_size, int):
            input_size = (input_size, input_size)
        if len(mean) != 3 or not all(math.isfinite(m) for m in mean):
            raise SettingError("mean", mean, "three finite numbers, one a channel")
        if len(std) != 3 or not all(0 < s < math.inf for s in std):
            raise SettingError("std", std, "three finite numbers above 0, one a channel")
        if input_size is not None and (len(input_size) != 2 or min(input_size) < 1):
            raise SettingError("input_size", input_size, "None, a side, or (H, W)")
        set_field = lambda field, value: object.__setattr__(self, field, value)  # noqa: E731 - frozen
        set_field("name", name)
        set_field("variables", variables)
        set_field("num_classes", num_classes)
        set_field("mean", tuple(float(m) for m in mean))
        set_field("std", tuple(float(s) for s in std))
        set_field("channels", choose("channels", channels, CHANNEL_ORDERS))
        set_field("input_size", None if input_size is None else tuple(input_size))
        set_field("options", tuple(sorted(dict(options).items())))
        networks.build(name, num_classes, **dict(options))  # an unknown option is said now, not at the first image

    @property
    def network(self) -> nn.Module:
        """The linen module that the variables belong to."""
        return networks.build(self.name, self.num_classes, **dict(self.options))

    def computing_in(self, dtype: str) -> "Classifier":
        """Returns the classifier with a network that computes in another type, 'bfloat16'; logits stay in float32."""
        return self._with_option("dtype", dtype)

    def preprocess(self, images: jax.Array) -> jax.Array:
        """Turns images in [0, 1], RGB, into what the network takes.  [N, H, W, 3] -> [N, h, w, 3]"""
        chex.assert_rank(images, 4)
        chex.assert_axis_dimension(images, 3, 3)
        chex.assert_type(images, float)
        if self.input_size is not None and images.shape[1:3] != self.input_size:
            images = jax.image.resize(images, (images.shape[0], *self.input_size, 3), "bilinear")
        if self.channels == "BGR":
            images = images[..., ::-1]
        return (images - jnp.asarray(self.mean, images.dtype)) / jnp.asarray(self.std, images.dtype)

    def logits(self, inputs: jax.Array) -> jax.Array:
        """Runs the network, in inference mode, on inputs that are preprocessed already.  -> [N, K]"""
        logits: Any = self.network.apply(self.variables, inputs, train=False)
        return logits

    @property
    def has_halves(self) -> bool:
        """Whether the network splits into `features` and `head`, as all of `networks.names()` do."""
        return hasattr(self.network, "features") and hasattr(self.network, "head")

    def features(self, inputs: jax.Array) -> jax.Array:
        """Runs the first half of the network, in inference mode, on inputs that are preprocessed already.

        Returns:
            The last feature map, [N, h, w, C], or a transformer's class tokens, [N, C].
        """
        features: Any = self.network.apply(self.variables, inputs, train=False, method="features")
        return features

    def head(self, features: jax.Array) -> jax.Array:
        """Runs the second half, in inference mode, on what `features` gave: together they are `logits`.  -> [N, K]"""
        logits: Any = self.network.apply(self.variables, features, train=False, method="head")
        return logits

    def rematerialized(self) -> "Classifier":
        """Returns the same classifier, whose gradient takes less memory and more time, where its network can that."""
        if "remat" not in networks.options(self.name):
            return self
        return self._with_option("remat", True)

    def _with_option(self, name: str, value: Any) -> "Classifier":
        options = {**dict(self.options), name: value}
        given = (self.name, self.variables, self.num_classes, self.mean, self.std)
        return Classifier(*given, channels=self.channels, input_size=self.input_size, options=options)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits of images.

        Args:
            images: Float, RGB, in [0, 1]. [N, H, W, 3]

        Returns:
            [N, K]
        """
        return self.logits(self.preprocess(images))

    def describe(self) -> dict[str, Any]:
        """Returns everything but the variables, as JSON values: the other arguments of `Classifier`."""
        return {
            "name": self.name,
            "options": dict(self.options),
            "num_classes": self.num_classes,
            "mean": list(self.mean),
            "std": list(self.std),
            "channels": self.channels,
            "input_size": None if self.input_size is None else list(self.input_size),
        }

    @classmethod
    def from_description(cls, described: Mapping[str, Any], variables: Any) -> "Classifier":
        """Returns the classifier that `describe` tells of, with variables."""
        arguments = dict(described)
        return cls(arguments.pop("name"), variables, **arguments)

    def tree_flatten(self):
        static = tuple(getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "variables")
        return (self.variables,), static

    @classmethod
    def tree_unflatten(cls, static, children):
        # Not through __init__: JAX also rebuilds the tree around placeholders.
        self = object.__new__(cls)
        names = [f.name for f in dataclasses.fields(cls) if f.name != "variables"]
        for field, value in zip(("variables", *names), (*children, *static), strict=True):
            object.__setattr__(self, field, value)
        return self
