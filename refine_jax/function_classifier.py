"""A classifier that is a JAX function of the user's own, for networks that this project does not know."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from refine_jax.errors import SettingError

_WANTED = "a JAX function: float images in [0, 1], RGB [N, H, W, 3] -> logits [N, K]"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class FunctionClassifier:
    """Stands where a `Classifier` does; what preprocessing there is, is the function's own.

    Attributes:
        function: (images float [N, H, W, 3]) -> logits [N, K]; or (variables, images), where there are variables.
        variables: Nested dicts of arrays; {} where the function has its weights in itself.
        num_classes: K.
        has_variables: Whether the function takes them.
    """

    function: Callable[..., jax.Array] = dataclasses.field(metadata={"static": True})
    variables: Mapping[str, Any]
    num_classes: int = dataclasses.field(metadata={"static": True})
    has_variables: bool = dataclasses.field(metadata={"static": True})

    def preprocess(self, images: jax.Array) -> jax.Array:
        """Returns the images as they are."""
        return images

    def logits(self, inputs: jax.Array) -> jax.Array:
        """Calls the function.  [N, H, W, 3] -> [N, K]"""
        return self.function(self.variables, inputs) if self.has_variables else self.function(inputs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits of images.  Float in [0, 1] [N, H, W, 3] -> [N, K]"""
        return self.logits(images)

    def rematerialized(self) -> "FunctionClassifier":
        """Returns the same, its intermediate values computed again in the backward pass."""
        return dataclasses.replace(self, function=jax.checkpoint(self.function))

    def describe(self) -> dict[str, Any]:
        """Returns what can be said of it, as JSON values; the function itself cannot be written down."""
        return {
            "function": getattr(self.function, "__qualname__", repr(self.function)),
            "num_classes": self.num_classes,
        }


def wrap(
    function: Callable[..., jax.Array],
    image_size: tuple[int, int],
    num_classes: int | None = None,
    variables: Mapping[str, Any] | None = None,
) -> FunctionClassifier:
    """Makes a classifier of a function, after looking at what it does with two images.

    Args:
        function: See `FunctionClassifier`.
        image_size: (H, W) of the images that it will be shown.
        num_classes: K; None: as many as the function has logits.
        variables: Its weights, if they are to be arguments of compiled programs and not constants in them: nested
            dicts with strings as keys and arrays as leaves, as an export writes them.

    Raises:
        SettingError: It is no such function, has another number of classes, no gradient comes through it, or its
            variables are not such dicts.
    """
    if variables is not None:
        _check_variables(variables, "")
    classifier = FunctionClassifier(function, variables or {}, num_classes or 0, variables is not None)
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(2, *image_size, 3)), jnp.float32)
    name = _name(function)
    try:
        shape = jax.eval_shape(classifier, images)
    except Exception as error:  # the function's own
        raise SettingError("classifier", name, f"{_WANTED}; this one raises {_shown(error)}") from error
    shown = getattr(shape, "shape", None)
    if shown is None or len(shown) != 2 or shown[0] != 2 or not jnp.issubdtype(shape.dtype, jnp.floating):
        raise SettingError("classifier", name, f"{_WANTED}; of 2 images this one makes {shape}")
    if num_classes not in (None, shown[1]):
        raise SettingError("num_classes", num_classes, f"{shown[1]}, as the function has so many logits")
    classifier = dataclasses.replace(classifier, num_classes=shown[1])
    weights = jnp.arange(1.0, shown[1] + 1)  # of the logits; their plain sum may be constant
    try:
        gradient = np.asarray(jax.grad(lambda images: (classifier(images) * weights).sum())(images))
    except Exception as error:
        raise SettingError("classifier", name, f"{_WANTED}, with a gradient; {_shown(error)}") from error
    if not gradient.any() or not np.isfinite(gradient).all():
        raise SettingError("classifier", name, f"{_WANTED}, through which a gradient comes that is finite and not 0")
    answers = np.asarray(classifier(images), np.float64)
    if shown[1] > 1 and (answers >= 0).all() and np.allclose(answers.sum(axis=1), 1, atol=1e-2):
        raise SettingError("classifier", name, f"{_WANTED}, before a softmax: those of this one add up to 1")
    return classifier


def _check_variables(variables: Any, place: str) -> None:
    """Refuses what an export could not give back by name."""
    wanted = "nested dicts of arrays, the keys of which are strings"
    if isinstance(variables, Mapping) and not jax.tree_util.all_leaves([variables]):  # one that JAX knows
        for key, value in variables.items():
            if not isinstance(key, str):
                raise SettingError(f"variables{place}", f"with the key {key!r}", wanted)
            _check_variables(value, f"{place}[{key!r}]")
    elif not place or not isinstance(variables, np.ndarray | np.generic | jax.Array):
        raise SettingError(f"variables{place}", f"of type {type(variables).__name__}", wanted)
    elif not jnp.issubdtype(variables.dtype, jnp.number) and variables.dtype != bool:
        raise SettingError(f"variables{place}", f"of type {variables.dtype}", f"{wanted}; arrays of numbers")


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", repr(function))


def _shown(error: Exception) -> str:
    reason = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {reason}"
