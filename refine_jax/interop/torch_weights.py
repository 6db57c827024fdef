"""PyTorch state dicts as Flax variables, and back."""

import logging
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from refine_jax import networks
from refine_jax.errors import SettingError, choose
from refine_jax.interop.state_dicts import Entries, WeightsError, candidates, shared_prefix
from refine_jax.interop.torch_names import FAMILIES, torch_name

logger = logging.getLogger(__name__)

# Axes of a Flax kernel in PyTorch's order: HWIO to OIHW, [in, out] to [out, in].
_KERNEL_AXES = {4: (3, 2, 0, 1), 2: (1, 0)}
_OTHERS = "no floating-point numbers"
# Layers of a network at most: a file may name any number, and making a network takes as long as it has layers.
_MAX_DEPTH = {"unet": 10}
_MAX_LAYERS = 64
# That are held against the network, each in about a second.
_MOST_CANDIDATES = 8


class Weights(NamedTuple):
    """A network's weights, as they were found in a file.

    Attributes:
        variables: {'params': ..., 'batch_stats': ...} of JAX arrays, in float32 or wider.
        options: Of `networks.build(name, **options)`, `UNet` or `MaskedAutoencoder`.
        preprocessing: 'mean' and 'std', in units of [0, 1], where a layer of the file normalizes images.
        remarks: What was left out or is assumed, as sentences.
    """

    variables: dict[str, Any]
    options: dict[str, int]
    preprocessing: dict[str, tuple[float, ...]]
    remarks: tuple[str, ...]


def convert(name: str, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the Flax variables of a PyTorch state dict, as `read` finds them; its remarks are logged.

    Args:
        name: One of `networks.names()`, 'unet' or 'mae'.
        state_dict: As `read` takes it.

    Returns:
        {'params': ..., 'batch_stats': ...} of JAX arrays, in float32 or wider.

    Raises:
        WeightsError, SettingError: As in `read`.
    """
    weights = read(name, state_dict)
    for remark in weights.remarks:
        logger.warning("%s: %s", name, remark)
    return weights.variables


def read(name: str, state_dict: Mapping[str, Any], entry: str | None = None) -> Weights:
    """Returns what a PyTorch state dict says of a network.

    Width, depth, number of classes and the like are taken from the shapes. `num_batches_tracked` may be there or not
    and is left out: batch normalization with a fixed momentum does not use it.

    What no weight shows is assumed, and among the remarks: of torchvision's ResNets with a first convolution of 3 x 3,
    read as 'resnet18', 'resnet34' and 'resnet50', that they have a stride of 1 there and no max-pooling, as these; of
    a 'vit', that its heads have 64 channels each.

    Args:
        name: One of `networks.names()`, 'unet' or 'mae'.
        state_dict: PyTorch's names to arrays, NumPy's or PyTorch's. It may be wrapped, as {'model': state_dict}; its
            names may start with 'module.', and all of them or only the network's with others, such as 'net.' or
            'backbone.'. What stands under other names is left out then.
        entry: Which state dict to take where there are several: the key of one, or what its names begin with.

    Raises:
        WeightsError: Entries are missing, left over, of another shape, no floating-point numbers or not finite; all of
            them are named.
        SettingError: There is no network of this name; no such entry; or several networks, and no entry says which.
    """
    choose("network", name, FAMILIES)
    entries = _found(name, state_dict, entry)
    flat, infinite = {}, []
    for key, (path, shape) in _checked(name, entries.values).items():
        value = entries.values[key]
        if path[-1] == "kernel":
            value = value.transpose(np.argsort(_KERNEL_AXES[len(shape)]))
        with np.errstate(over="ignore"):  # what float32 does not hold is infinite, and told
            # A copy, since PyTorch updates its tensors in place.
            flat[path] = jnp.array(value, jnp.promote_types(value.dtype, jnp.float32))
            if not np.isfinite(value.astype(flat[path].dtype)).all():
                infinite.append(key)
    if infinite:
        raise WeightsError(f"weights of {name} that are not finite numbers: {', '.join(infinite)}")
    variables, options = traverse_util.unflatten_dict(flat), _infer(name, entries.values)[0]
    return Weights(variables, options, entries.preprocessing, entries.remarks)


def to_torch(name: str, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns the PyTorch state dict of Flax variables, as NumPy arrays; `num_batches_tracked` stands at 0.

    Args:
        name: One of `networks.names()`, 'unet' or 'mae'.
        variables: The variables of such a network.

    Raises:
        WeightsError: The variables are not those of such a network.
        SettingError: There is no network of this name.
    """
    choose("network", name, FAMILIES)
    state_dict = {}
    for path, value in traverse_util.flatten_dict(dict(variables)).items():
        value = np.asarray(value)
        if path[-1] == "kernel":
            value = value.transpose(_KERNEL_AXES[value.ndim])
        state_dict[torch_name(name, path)] = np.array(value, order="C")
        if path[-1] == "var":
            state_dict[torch_name(name, (*path[:-1], "num_batches_tracked"))] = np.zeros((), np.int64)
    _checked(name, state_dict)
    return state_dict


def infer_options(name: str, state_dict: Mapping[str, Any]) -> dict[str, int]:
    """Returns the options of `networks.build(name, **options)`, `UNet` or `MaskedAutoencoder` for this state dict.

    The heads of a 'vit' are taken to have 64 channels each, and its images as many patches down as across.

    Args:
        name: One of `networks.names()`, 'unet' or 'mae'.
        state_dict: As `read` takes it.

    Raises:
        SettingError: There is no network of this name.
    """
    choose("network", name, FAMILIES)
    return _infer(name, _found(name, state_dict).values)[0]


def fitting(state_dict: Mapping[str, Any], entry: str | None = None) -> tuple[str, ...]:
    """Returns the names of the networks, of `networks.names()`, whose weights a state dict has.

    Args:
        state_dict: As `read` takes it.
        entry: Likewise.
    """

    def fits(name: str) -> bool:
        try:
            values = _found(name, state_dict, entry).values
            # Without the entries of its head it is another network's; to see all of them takes seconds.
            return "num_classes" in _infer(name, values)[0] and bool(_checked(name, values))
        except (WeightsError, SettingError):
            return False

    return tuple(name for name in networks.names() if name in FAMILIES and fits(name))


def _found(name: str, state_dict: Any, entry: str | None = None) -> Entries:
    """Returns the entries of the network; of several that may be, those that are."""
    several = candidates(name, state_dict, entry)
    fits = [entries for entries in several[:_MOST_CANDIDATES] if len(several) > 1 and _fits(name, entries.values)]
    if len(fits) > 1:
        prefixes = ", ".join(entries.prefix.rstrip(".") for entries in fits)
        raise SettingError("entry", entry, f"one of {prefixes}: each is a {name}, and one is taken")
    return (fits or several)[0]


def _fits(name: str, values: Mapping[str, np.ndarray]) -> bool:
    try:
        return bool(_checked(name, values))
    except WeightsError:
        return False


def _infer(name: str, state_dict: Mapping[str, np.ndarray]) -> tuple[dict[str, int], list[str]]:
    """Returns the network's options, and the entries that showed them (the first for each)."""
    family = FAMILIES[name]
    sizes, sources = {}, []
    for option, entries in family.sizes.items():
        votes = {
            key: state_dict[key].shape[axis]
            for key, axis in entries
            if key in state_dict and state_dict[key].ndim > axis and state_dict[key].size
        }
        if votes:
            sizes[option] = Counter(votes.values()).most_common(1)[0][0]
            sources.append(next(key for key, size in votes.items() if size == sizes[option]))
    return family.finish(sizes, state_dict), sources


def _checked(name: str, state_dict: Mapping[str, np.ndarray]) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
    """Returns PyTorch's name to path and PyTorch's shape of every variable, if the state dict has just these."""
    options, sources = _infer(name, state_dict)
    most = min(_MAX_DEPTH.get(name, _MAX_LAYERS), len(state_dict))
    for option in ("depth", "decoder_depth"):
        if options.get(option, 0) > most:
            found = f"{len(state_dict)} entries name {options[option]} layers, and {most} can be"
            raise WeightsError(f"not the weights of {name}: {found}")
    expected = _entries(name, options)
    counters = {re.sub("running_var$", "num_batches_tracked", key) for key in expected if key.endswith("running_var")}
    missing = [key for key in expected if key not in state_dict]
    extra = [key for key in state_dict if key not in expected and key not in counters]
    misshapen = [
        f"{key} {state_dict[key].shape}, not {shape}"
        for key, (_, shape) in expected.items()
        if key in state_dict and state_dict[key].shape != shape
    ]
    others = [
        f"{key} {state_dict[key].dtype}"
        for key in expected
        if key in state_dict and not jnp.issubdtype(state_dict[key].dtype, jnp.floating)
    ]
    if missing or extra or misshapen or others:
        found = ", ".join(f"{option} {value}" for option, value in options.items())
        parts = [f"not the weights of {name}" + (f" with {found} (by {', '.join(sources)})" if found else "")]
        for what, keys in (("missing", missing), ("left over", extra), ("misshapen", misshapen), (_OTHERS, others)):
            if keys:
                parts.append(f"{what}: {', '.join(keys)}")
        if prefix := shared_prefix(state_dict):
            parts.append(f"all names begin with {prefix!r}")
        raise WeightsError("; ".join(parts))
    return expected


def _entries(name: str, options: dict[str, Any]) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
    """Returns PyTorch's name to path and PyTorch's shape of every variable of the network with these options."""
    module: nn.Module
    if name == "unet":
        module = networks.unet.UNet(**options)
        side = 2 ** options.get("depth", networks.unet.UNet.depth)
    elif name == "mae":
        module = networks.mae.MaskedAutoencoder(**options)
        side = module.patch_size
    else:
        module = networks.build(name, **({"num_classes": 10} | options))
        side = options.get("image_size", 32)
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    variables = traverse_util.flatten_dict(jax.eval_shape(module.init, jax.random.key(0), images))
    entries = {}
    for path, value in variables.items():
        shape = value.shape
        if path[-1] == "kernel":
            shape = tuple(shape[axis] for axis in _KERNEL_AXES[len(shape)])
        entries[torch_name(name, path)] = (path, shape)
    return entries
