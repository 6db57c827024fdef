"""The rules by which the goldens' weights and inputs are drawn from seeds, and the files beside this one."""

import json
import pathlib
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn

FOLDER = pathlib.Path(__file__).parent


def load(name: str) -> dict[str, np.ndarray]:
    """Returns the arrays of the golden file `name`, as 'models/vgg16_cifar.npz'."""
    with np.load(FOLDER / name, allow_pickle=False) as file:
        return dict(file)


def shapes(text: np.ndarray | str) -> list[tuple[str, tuple[int, ...]]]:
    """Returns names and shapes of a `state_dict_json`."""
    return [(name, tuple(shape)) for name, shape in json.loads(str(text))]


def weights(
    seed: int, entries: Iterable[tuple[str, tuple[int, ...]]], conv_scale: float = 1.0
) -> dict[str, np.ndarray]:
    """Returns a PyTorch state dict with values drawn by name.

    Args:
        seed: Seed, as in the golden file.
        entries: Names and shapes, as `shapes` gives them.
        conv_scale: Factor of every tensor of four axes, `conv_scale_f64` of the golden file.
    """
    state_dict = {}
    for name, shape in entries:
        value = _value(np.random.default_rng([int(seed), zlib.crc32(name.encode())]), name.rpartition(".")[2], shape)
        if len(shape) == 4:
            value = (value * np.float64(conv_scale)).astype(np.float32)
        state_dict[name] = value
    return state_dict


def _value(rng: np.random.Generator, last: str, shape: tuple[int, ...]) -> np.ndarray:
    if last == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if last == "weight" and len(shape) >= 2:
        value = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    elif last == "running_var" or last == "weight":
        value = rng.uniform(0.5, 1.5, shape)
    elif last in ("bias", "running_mean"):
        value = 0.1 * rng.standard_normal(shape)
    else:
        value = 0.02 * rng.standard_normal(shape)
    return np.asarray(value, np.float32)


def golden_weights(golden: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the state dict of a network's golden file."""
    return weights(golden["seed"], shapes(golden["state_dict_json"]), float(golden.get("conv_scale_f64", 1.0)))


def inputs(seed: int, case: str, shape: Iterable[int]) -> np.ndarray:
    """Returns the float32 inputs of a case, in the order of `shape` (NCHW in every golden file)."""
    rng = np.random.default_rng([int(seed), zlib.crc32(b"x:" + case.encode())])
    return rng.random(tuple(int(side) for side in shape), dtype=np.float32)


def golden_inputs(golden: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns the inputs of a network's golden file, NHWC."""
    return inputs(golden["seed"], str(golden["x_case"]), golden["x_shape"]).transpose(0, 2, 3, 1)


def variables(module: nn.Module, shape: tuple[int, ...], seed: int = 0) -> dict[str, Any]:
    """Returns variables of a module that takes images of `shape` [N, H, W, 3], drawn in the manner of the weights.

    Nothing is compiled, unlike `module.init`, and running statistics are not those of a network just made.
    """
    rng = np.random.default_rng(seed)

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        last = path[-1].key
        if last == "kernel":
            value = rng.standard_normal(leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1]))
        elif last in ("scale", "var"):
            value = rng.uniform(0.5, 1.5, leaf.shape)
        else:
            value = 0.1 * rng.standard_normal(leaf.shape)
        return np.asarray(value, leaf.dtype)

    images = jax.ShapeDtypeStruct(shape, np.float32)
    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(module.init, jax.random.key(0), images))
