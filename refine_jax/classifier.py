"""A classifier as everyone else sees it: images in [0, 1] in, logits out, its preprocessing inside."""

import copy
import dataclasses
import functools
import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from refine_jax import networks
from refine_jax.errors import SettingError, choose

CHANNEL_ORDERS = ("RGB", "BGR")
# What of a network's variables is held against it, at what side where none is known; faults that an error names.
_COLLECTIONS, _SIDE, _NAMED = ("params", "batch_stats"), 32, 3


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
        SettingError: A value is impossible, or the variables are not the network's; which one and what is allowed.
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
        set_field = lambda field, value: object.__setattr__(self, field, value)  # noqa: E731 - frozen
        set_field("name", name)
        set_field("variables", variables)
        set_field("num_classes", num_classes)
        set_field("mean", _three("mean", mean, -math.inf, "three finite numbers, one a channel"))
        set_field("std", _three("std", std, 0, "three finite numbers above 0, one a channel"))
        set_field("channels", choose("channels", channels, CHANNEL_ORDERS))
        set_field("input_size", None if input_size is None else _sides(input_size))
        set_field("options", tuple(sorted(dict(options).items())))
        # An unknown option and weights of another network are said now, not at the first image.
        _check_variables(name, self.network, variables, self.input_size)

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
        networks.build(self.name, self.num_classes, **options)
        changed = copy.copy(self)  # its weights were held against the network before
        object.__setattr__(changed, "options", tuple(sorted(options.items())))
        return changed

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


def _three(field: str, values: Any, above: float, allowed: str) -> tuple[float, float, float]:
    """Returns three numbers of a setting, each above a bound."""
    try:
        first, second, third = map(float, values)
    except (TypeError, ValueError) as error:
        raise SettingError(field, values, allowed) from error
    if not all(above < value < math.inf for value in (first, second, third)):
        raise SettingError(field, values, allowed)
    return first, second, third


def _sides(input_size: Any) -> tuple[int, int]:
    """Returns (H, W) of a size, or of a side."""
    sides = tuple(input_size) if np.iterable(input_size) else (input_size, input_size)
    whole = all(isinstance(side, numbers.Integral) and not isinstance(side, bool) for side in sides)
    if len(sides) != 2 or not whole or min(sides) < 1:
        raise SettingError("input_size", input_size, "None, a side, or (H, W), in whole pixels")
    height, width = sides
    return int(height), int(width)


def _check_variables(name: str, network: nn.Module, variables: Any, input_size: tuple[int, int] | None) -> None:
    """Refuses weights that are not the network's, by their names and shapes.

    Where nobody says of what size the images are, and that makes a difference to the weights, they are not looked at.
    """
    side = getattr(network, "image_size", None)
    wanted = _shapes(network, input_size or (side or _SIDE,) * 2)
    if wanted is None or not (faults := _faults(wanted, variables)):
        return
    if input_size is None and side is None and _shapes(network, (2 * _SIDE,) * 2) != wanted:
        return
    listed = ", ".join(faults[:_NAMED]) + (f" and {len(faults) - _NAMED} more" if len(faults) > _NAMED else "")
    classes = getattr(network, "num_classes", None)
    allowed = f"Flax variables of {name} with {classes} classes and these options: {listed}"
    raise SettingError("variables", f"a {type(variables).__name__}", allowed)


def _faults(wanted: Mapping[str, tuple[int, ...]], variables: Any) -> list[str]:
    """In what variables are not these, collections aside of which the network has none."""
    if not isinstance(variables, Mapping) or ("params" not in variables and wanted):
        return ["'params' are missing; refine_jax.interop.torch_weights.convert makes them of a PyTorch state dict"]
    given = _named_shapes({name: variables[name] for name in variables if name in _COLLECTIONS})
    faults = [f"{name} is missing" for name in wanted if name not in given]
    faults += [f"{name} is left over" for name in given if name not in wanted]
    both = [name for name in wanted if name in given and given[name] != wanted[name]]
    return faults + [f"{name} {given[name]}, not {wanted[name]}" for name in both]


def _named_shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the leaves, by 'collection/module/.../name'."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    shape = lambda leaf: tuple(getattr(leaf, "shape", None) or np.shape(leaf))  # noqa: E731
    return {jax.tree_util.keystr(path, simple=True, separator="/"): shape(leaf) for path, leaf in leaves}


@functools.lru_cache(64)
def _shapes(network: nn.Module, size: tuple[int, int]) -> dict[str, tuple[int, ...]] | None:
    """Returns the shapes of a network's variables, None where they cannot be told; nothing is computed."""
    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    try:
        variables = jax.eval_shape(functools.partial(network.init, train=False), jax.random.key(0), images)
    except Exception:  # of a size that it does not take, or a network's own: the first image will tell
        return None
    return _named_shapes({name: variables[name] for name in variables if name in _COLLECTIONS})
