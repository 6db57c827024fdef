"""PyTorch state dicts as Flax variables, and back."""

import logging
import re
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from refine_jax import networks
from refine_jax.errors import DataError, SettingError, choose
from refine_jax.interop.torch_names import FAMILIES, shows, torch_name, with_own_names

logger = logging.getLogger(__name__)

# Axes of a Flax kernel in PyTorch's order: HWIO to OIHW, [in, out] to [out, in].
_KERNEL_AXES = {4: (3, 2, 0, 1), 2: (1, 0)}
# Keys under which programs keep a state dict, next to other things or inside one another.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "netC", "network", "unet", "weights")
_PREFIXES = re.compile(r"^(module\.|_orig_mod\.)+")
# Names of DenseNet's files made before PyTorch 0.4, when a dot stood before the number of a layer.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")
_OTHERS = "no floating-point numbers"
# Layers of a network at most: a file may name any number, and making a network takes as long as it has layers.
_MAX_DEPTH = {"unet": 10}
_MAX_LAYERS = 64


class WeightsError(DataError, ValueError):
    """Entries that are not those of the network: missing, left over or of another shape."""


def convert(name: str, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the Flax variables of a PyTorch state dict.

    Width, depth, number of classes and the like are taken from the shapes, as `infer_options` does.
    `num_batches_tracked` may be there or not and is left out: batch normalization with a fixed momentum does
    not use it.

    Torchvision's ResNets with a first convolution of 3 x 3 are read as 'resnet18', 'resnet34' and 'resnet50'. That
    they have a stride of 1 there and no max-pooling, as these, no weight shows: the log says that it is assumed.

    Args:
        name: One of `networks.names()`, 'unet' or 'mae'.
        state_dict: PyTorch's names to arrays, NumPy's or PyTorch's; it may be wrapped, as {'model': state_dict},
            its names may start with 'module.', and all of them with others, such as 'net.' or 'backbone.'.

    Returns:
        {'params': ..., 'batch_stats': ...} of JAX arrays, in float32 or wider.

    Raises:
        WeightsError: Entries are missing, left over, of another shape, no floating-point numbers or not finite; all of
            them are named.
        SettingError: There is no network of this name.
    """
    choose("network", name, FAMILIES)
    stripped = _stripped(name, state_dict)
    state_dict = with_own_names(name, stripped)
    flat, infinite = {}, []
    for key, (path, shape) in _checked(name, state_dict).items():
        value = state_dict[key]
        if not np.isfinite(value.astype(np.float64)).all():
            infinite.append(key)
        if path[-1] == "kernel":
            value = value.transpose(np.argsort(_KERNEL_AXES[len(shape)]))
        # A copy, since PyTorch updates its tensors in place.
        flat[path] = jnp.array(value, jnp.promote_types(value.dtype, jnp.float32))
    if infinite:
        raise WeightsError(f"weights of {name} that are not finite numbers: {', '.join(infinite)}")
    if state_dict.keys() != stripped.keys():
        logger.warning(
            "%s: torchvision's names and a first convolution of 3 x 3: taken to have a stride of 1 there and no "
            "max-pooling, which weights do not show",
            name,
        )
    return traverse_util.unflatten_dict(flat)


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
        state_dict: As `convert` takes it.

    Raises:
        SettingError: There is no network of this name.
    """
    choose("network", name, FAMILIES)
    return _infer(name, unwrapped(name, state_dict))[0]


def fitting(state_dict: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the names of the networks, of `networks.names()`, whose weights a state dict has.

    Args:
        state_dict: As `convert` takes it.
    """

    def fits(name: str) -> bool:
        try:
            plain = unwrapped(name, state_dict)
            # Without the entries of its head it is another network's; to see all of them takes seconds.
            return "num_classes" in _infer(name, plain)[0] and bool(_checked(name, plain))
        except (WeightsError, SettingError):
            return False

    return tuple(name for name in networks.names() if name in FAMILIES and fits(name))


def unwrapped(name: str, state_dict: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns the state dict without wrappers and prefixes, by the network's names, its values as NumPy arrays.

    Args:
        name: Of the network, for its names and for errors.
        state_dict: As `convert` takes it.

    Raises:
        WeightsError: It is none, or two of its entries have one name.
    """
    return with_own_names(name, _stripped(name, state_dict))


def _stripped(name: str, state_dict: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns the state dict without wrappers and prefixes, its values as NumPy arrays."""
    while isinstance(state_dict, Mapping):
        inner = [state_dict[key] for key in _WRAPPERS if isinstance(state_dict.get(key), Mapping)]
        if not inner:
            break
        state_dict = inner[0]
    if not isinstance(state_dict, Mapping):
        raise WeightsError(f"a state dict of {name} maps names to arrays; this is a {type(state_dict).__name__}")
    plain: dict[str, np.ndarray] = {}
    for key, value in state_dict.items():
        key = _PREFIXES.sub("", str(key))
        if name == "densenet121":
            key = _OLD_DENSENET.sub(r"\1\2", key)
        if key in plain:
            raise WeightsError(f"two entries of the state dict are called {key!r} once prefixes are left out")
        plain[key] = _array(key, value)
    rest, prefix = plain, _shared_prefix(plain)
    while prefix and not shows(name, rest):
        rest = {key.removeprefix(prefix): value for key, value in rest.items()}
        prefix = _shared_prefix(rest)
    return rest if shows(name, rest) else plain


def _shared_prefix(names: Collection[str]) -> str:
    """The first part of all names, as 'net.', of a module around the network; "" where they have none."""
    first = {name.partition(".")[0] for name in names if "." in name}
    return f"{first.pop()}." if len(first) == 1 and all("." in name for name in names) else ""


def _array(name: str, value: Any) -> np.ndarray:
    """Returns an array or a PyTorch tensor, whatever its device, gradient and type, as a NumPy array."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":  # NumPy has no such type of its own.
            value = value.float()
    try:
        return np.asarray(value)
    except ValueError as error:  # rows of several lengths
        raise WeightsError(f"the entry {name!r} of the state dict is a {type(value).__name__}, no array") from error


def _infer(name: str, state_dict: Mapping[str, np.ndarray]) -> tuple[dict[str, int], list[str]]:
    """Returns the network's options, and the entries that showed them (the first for each)."""
    family = FAMILIES[name]
    sizes, sources = {}, []
    for option, entries in family.sizes.items():
        votes = {
            key: state_dict[key].shape[axis]
            for key, axis in entries
            if key in state_dict and state_dict[key].ndim > axis
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
        if prefix := _shared_prefix(state_dict):
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
