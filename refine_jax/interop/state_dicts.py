"""Which entries of what a file holds are a network's: wrappers, prefixes, copies, and layers that stand around it."""

import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from refine_jax.errors import DataError, SettingError
from refine_jax.interop.torch_names import FAMILIES, heads, shows, with_own_names

# Keys under which programs keep a state dict, next to other things or inside one another.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "netC", "network", "unet", "weights")
_PREFIXES = re.compile(r"^(module\.|_orig_mod\.)+")
# Names of DenseNet's files made before PyTorch 0.4, when a dot stood before the number of a layer.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")
# Of the last layer where others without weights, as dropout, stand around it in an nn.Sequential.
_HEAD = re.compile(r"^((?:.*\.)?(?:fc|linear|classifier))\.(\d{1,9})\.(weight|bias)$")
# What torch.optim.swa_utils.AveragedModel keeps beside the weights: of how many models they are the mean.
_AVERAGED = "n_averaged"
# The last part of the names of a mean that a layer takes from images, and of the deviation beside it.
_MEANS = {"mean": "std", "_mean": "_std", "new_mean": "new_std"}
_NAMED = 3  # entries that a sentence names


class WeightsError(DataError, ValueError):
    """Entries that are not those of the network: missing, left over or of another shape."""


class Entries(NamedTuple):
    """What may be a network's.

    Attributes:
        values: By the network's own names in PyTorch, as NumPy arrays.
        prefix: Below which they stood; "" where there was none.
        preprocessing: 'mean' and 'std', in units of [0, 1], where a layer of the file normalizes images.
        remarks: What was left out or is assumed, as sentences.
    """

    values: dict[str, np.ndarray]
    prefix: str
    preprocessing: dict[str, tuple[float, ...]]
    remarks: tuple[str, ...]


def candidates(name: str, tree: Any, entry: str | None = None) -> list[Entries]:
    """Returns what may be the network's entries: one or more, those with the fewest parts before their names first.

    Args:
        name: Of the network.
        tree: A state dict. It may be wrapped, some or all of its names may have a prefix, and there may be others
            beside it.
        entry: The key of the state dict to take, or the first part of the names to take; None for what there is.

    Raises:
        WeightsError: It is no state dict, or two of its entries have one name.
        SettingError: There is no such entry.
    """
    mapping, averages, rest = _unwrapped(name, tree, entry)
    plain = _plain(name, mapping)
    if rest is not None:
        plain = _part(plain, mapping, rest)
    plain.pop(_AVERAGED, None)
    remarks = [_of_average(key) for key in averages if entry is None]
    plain, head = _with_plain_head(name, plain)
    if head is not None:
        remarks.append(f"the last layer is called {head!r}: what stands around it is taken to be dropout alone")
    preprocessing, layers, told = _normalizing(plain)
    kept = {key: value for key, value in plain.items() if key not in layers}
    found = []
    for prefix in _prefixes(name, kept):
        values = {key.removeprefix(prefix): value for key, value in kept.items() if key.startswith(prefix)}
        left_out = [key for key in kept if not key.startswith(prefix)]
        around = [*_of_left_out(left_out), *([] if layers else _of_part(prefix))]
        found.append(_entries(name, values, prefix, preprocessing, [*remarks, *told, *around]))
    return found or [_entries(name, _without_shared(name, kept), "", preprocessing, [*remarks, *told])]


def _entries(
    name: str, values: Mapping[str, Any], prefix: str, preprocessing: dict[str, tuple[float, ...]], remarks: list[str]
) -> Entries:
    arrays = _arrays(values)
    own = with_own_names(name, arrays)
    if own.keys() != arrays.keys():
        remarks.append(
            "torchvision's names and a first convolution of 3 x 3: taken to have a stride of 1 there and no "
            "max-pooling, which weights do not show"
        )
    if name == "vit":
        remarks.append("its heads are taken to have 64 channels each, which weights do not show")
    return Entries(own, prefix, preprocessing, tuple(remarks))


def whole(name: str, tree: Any) -> dict[str, np.ndarray]:
    """Returns all entries of a state dict, without wrappers and what all their names begin with.

    Args:
        name: Of the network.
        tree: A state dict.

    Raises:
        WeightsError: It is none, or two of its entries have one name.
    """
    mapping, _, _ = _unwrapped(name, tree, None)
    return with_own_names(name, _arrays(_without_shared(name, _plain(name, mapping))))


def shared_prefix(names: Collection[str]) -> str:
    """Returns the first part of all names, as 'net.', of a module around the network; "" where they have none."""
    first = {name.partition(".")[0] for name in names if "." in name}
    return f"{first.pop()}." if len(first) == 1 and all("." in name for name in names) else ""


def _unwrapped(name: str, tree: Any, entry: str | None) -> tuple[Mapping[Any, Any], list[str], str | None]:
    """Returns the innermost state dict, the keys of averages beside it, and the entry if it was not met."""
    averages: list[str] = []
    while isinstance(tree, Mapping):
        if entry is not None and isinstance(tree.get(entry), Mapping):
            tree, entry = tree[entry], None
            continue
        key = next((key for key in _WRAPPERS if isinstance(tree.get(key), Mapping)), None)
        if key is None:
            return tree, averages, entry
        averages += [
            other
            for other in tree
            if isinstance(other, str) and "ema" in other.lower().split("_") and isinstance(tree[other], Mapping)
        ]
        tree = tree[key]
    raise WeightsError(f"a state dict of {name} maps names to arrays; this is a {type(tree).__name__}")


def _plain(name: str, mapping: Mapping[Any, Any]) -> dict[str, Any]:
    """Returns the entries by their names without what wrappers of a whole model put before them."""
    plain: dict[str, Any] = {}
    for key, value in mapping.items():
        key = _PREFIXES.sub("", str(key))
        if name == "densenet121":
            key = _OLD_DENSENET.sub(r"\1\2", key)
        if key in plain:
            raise WeightsError(f"two entries of the state dict are called {key!r} once prefixes are left out")
        plain[key] = value
    return plain


def _part(plain: dict[str, Any], mapping: Mapping[Any, Any], entry: str) -> dict[str, Any]:
    """Returns the entries whose names begin with `entry`, without it."""
    prefix = f"{entry.rstrip('.')}."
    part = {key.removeprefix(prefix): value for key, value in plain.items() if key.startswith(prefix)}
    if part:
        return part
    there = [str(key) for key, value in mapping.items() if isinstance(value, Mapping)]
    there += {key.partition(".")[0]: None for key in plain if "." in key}
    raise SettingError("entry", entry, f"of this file one of {_listed(there)}" if there else "none of this file")


def _with_plain_head(name: str, plain: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Renames 'fc.1.weight' to 'fc.weight' where no other part of 'fc' has weights, and returns its old name."""
    found: dict[str, dict[str, set[str]]] = {}
    for key in plain:
        if match := _HEAD.match(key):
            found.setdefault(match[1], {}).setdefault(match[2], set()).add(match[3])
    alone = {
        f"{layer}.{number}": layer
        for layer, numbers in found.items()
        if f"{layer}.weight" not in plain and len(numbers) == 1
        for number, kinds in numbers.items()
        if kinds == {"weight", "bias"} and np.ndim(plain[f"{layer}.{number}.weight"]) == 2
    }
    if not alone or "num_classes" not in FAMILIES[name].sizes:
        return plain, None
    renamed = {}
    for key, value in plain.items():
        layer, _, last = key.rpartition(".")
        renamed[f"{alone[layer]}.{last}" if layer in alone else key] = value
    return renamed, next(iter(alone))


def _normalizing(plain: Mapping[str, Any]) -> tuple[dict[str, tuple[float, ...]], set[str], list[str]]:
    """Returns the mean and the deviation of a layer that normalizes images, its entries, and what is to be said."""
    pairs: list[tuple[tuple[float, ...], tuple[float, ...]]] = []
    layers: set[str] = set()
    for key in plain:
        before, dot, last = key.rpartition(".")
        beside = f"{before}{dot}{_MEANS.get(last)}"
        mean, std = _three(plain[key]) if last in _MEANS else None, _three(plain.get(beside))
        if mean is not None and std is not None:
            layers |= {key, beside}
            pairs.append((mean, std))
    if not pairs:
        return {}, set(), []
    (mean, std), more = pairs[0], set(pairs[1:])
    if more - {pairs[0]}:
        return {}, layers, [f"layers of the file normalize images in {1 + len(more)} ways, and none is taken"]
    if not (all(0 <= value <= 1 for value in mean) and all(0 < value <= 1 for value in std)):
        return {}, layers, [f"a layer normalizes images by {mean} and {std}: not in units of [0, 1], and not taken"]
    told = f"a layer of the file normalizes images, by a mean of {mean} and a deviation of {std}: its preprocessing"
    return {"mean": mean, "std": std}, layers, [told]


def _three(value: Any) -> tuple[float, ...] | None:
    """Returns the numbers of an array or tensor of three, one a channel; None of anything else."""
    array = _array("", value) if hasattr(value, "shape") else None
    if array is None or array.size != 3 or array.dtype.kind not in "fV":  # V: those of ml_dtypes
        return None
    return tuple(float(str(value)) for value in array.ravel())  # by its digits: 0.485, not what float32 makes of it


def _prefixes(name: str, entries: Collection[str]) -> list[str]:
    """Returns what stands before the names of the network's last layer, with the fewest parts: one or several."""
    found = {
        key.removesuffix(head) for key in entries for head in heads(name) if key == head or key.endswith(f".{head}")
    }
    fewest = min((prefix.count(".") for prefix in found), default=0)
    return sorted(prefix for prefix in found if prefix.count(".") == fewest)


def _without_shared(name: str, entries: dict[str, Any]) -> dict[str, Any]:
    rest, prefix = entries, shared_prefix(entries)
    while prefix and not shows(name, rest):
        rest = {key.removeprefix(prefix): value for key, value in rest.items()}
        prefix = shared_prefix(rest)
    return rest if shows(name, rest) else entries


def _arrays(values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {key: _array(key, value) for key, value in values.items()}


def _array(name: str, value: Any) -> np.ndarray:
    """Returns an array or a PyTorch tensor, whatever its device, gradient and type, as a NumPy array."""
    if isinstance(value, str | bytes | list | tuple | set | Mapping):
        # NumPy would make one of it, of as many bytes as the longest of its strings has for each of them.
        what = f"the entry {name!r} of the state dict is a {type(value).__name__}, no array"
        remedy = f": if the network is in there, give victim.entry={name}" if isinstance(value, Mapping) else ""
        raise WeightsError(what + remedy)
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":  # NumPy has no such type of its own.
            value = value.float()
    return np.asarray(value)


def _of_average(key: str) -> str:
    return (
        f"the file also holds {key!r}, likely an average of the weights over the training, which may be what is in "
        f"use: victim.entry={key} takes it"
    )


def _of_left_out(names: list[str]) -> list[str]:
    return [f"entries of the file that are not the classifier's are left out: {_listed(names)}"] if names else []


def _of_part(prefix: str) -> list[str]:
    """What a number before the names tells: of nn.Sequential(normalize, network), the second."""
    if not any(part.isdecimal() and part != "0" for part in prefix.split(".")):
        return []
    return [
        "the classifier is a later part of an nn.Sequential, and what stands before it has no weights: if it "
        "normalizes images, its numbers belong in victim.mean and victim.std"
    ]


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
