"""What the networks' entries are called in PyTorch, and which of them show a network's size: tables.

The names follow from the paths of the Flax variables by substitutions for the modules of each family and a
table for the last part.
"""

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

import numpy as np

# Of a layer's number; what is longer is none.
_MAX_DIGITS = 9
# Networks that are read as small ones even where their entries have torchvision's names.
_SMALL = ("resnet18", "resnet34", "resnet50")


class Family(NamedTuple):
    """Networks whose PyTorch names are made alike.

    Attributes:
        modules: Pattern and replacement, made one after another in a module path joined by dots.
        sizes: Option to entries and the axis whose length shows it; several, so that one misshapen entry is
            outvoted by the others.
        finish: Takes these lengths and all entries' names to the options of the network.
    """

    modules: tuple[tuple[str, str], ...]
    sizes: dict[str, tuple[tuple[str, int], ...]]
    finish: Callable[[dict[str, int], Iterable[str]], dict[str, int]] = lambda sizes, names: sizes


def _unet_options(sizes: dict[str, int], names: Iterable[str]) -> dict[str, int]:
    levels = _numbers(r"down(\d+)\.", names)
    return sizes | ({"depth": max(levels)} if levels else {})


def _vit_options(sizes: dict[str, int], names: Iterable[str]) -> dict[str, int]:
    """Takes lengths of flattened axes apart: 3 x heads x 64, 5 images x 3 channels x patch ** 2, 1 + patches."""
    options: dict[str, int] = {key: sizes[key] for key in ("num_classes", "dim", "mlp_dim") if key in sizes}
    layers = _numbers(r"transformer\.layers\.(\d+)\.", names)
    if layers:
        options["depth"] = 1 + max(layers)
    if "heads x 64" in sizes:
        options["heads"] = max(1, sizes["heads x 64"] // 64)
    if "patch values" in sizes and "tokens" in sizes:
        options["patch_size"] = max(1, math.isqrt(sizes["patch values"] // 15))
        options["image_size"] = options["patch_size"] * max(1, math.isqrt(max(0, sizes["tokens"] - 1)))
    return options


def _mae_options(sizes: dict[str, int], names: Iterable[str]) -> dict[str, int]:
    """Adds what no shape shows: how many layers there are, and the published models' heads."""
    options = dict(sizes)
    for option, pattern in (("depth", r"blocks\.(\d+)\."), ("decoder_depth", r"decoder_blocks\.(\d+)\.")):
        if layers := _numbers(pattern, names):
            options[option] = 1 + max(layers)
    if "width" in sizes:
        options["heads"] = 16 if sizes["width"] == 1280 else max(1, sizes["width"] // 64)  # the huge one has 80 each
    if "decoder_width" in sizes:
        options["decoder_heads"] = max(1, sizes["decoder_width"] // 32)
    return options


def _numbers(pattern: str, names: Iterable[str]) -> list[int]:
    return [int(match[1]) for name in names if (match := re.match(pattern, name)) and len(match[1]) <= _MAX_DIGITS]


_STAGES = (r"layer(\d+)_(\d+)", r"layer\1.\2")
_WIDTH = (("conv1.weight", 0), ("layer1.0.conv1.weight", 0), ("layer1.0.bn2.weight", 0))
_RESNET = Family(
    modules=(_STAGES, ("shortcut_conv", "shortcut.0"), ("shortcut_bn", "shortcut.1")),
    sizes={"num_classes": (("linear.bias", 0), ("linear.weight", 0)), "width": _WIDTH},
)
_TORCHVISION_RESNET = Family(
    modules=(_STAGES, ("shortcut_conv", "downsample.0"), ("shortcut_bn", "downsample.1"), ("linear", "fc")),
    sizes={"num_classes": (("fc.bias", 0), ("fc.weight", 0)), "width": _WIDTH},
)
_CLASSIFIER: dict[str, tuple[tuple[str, int], ...]] = {
    "num_classes": (("classifier.bias", 0), ("classifier.weight", 0))
}
_VGG = Family(modules=((r"conv(\d+)", r"features.\1"), ("linear", "classifier")), sizes=_CLASSIFIER)
_DENSENET = Family(
    modules=(
        (r"^(conv|norm|block|transition)", r"features.\1"),
        (r"block(\d+)_layer(\d+)", r"denseblock\1.denselayer\2"),
        ("linear", "classifier"),
    ),
    sizes=_CLASSIFIER,
)
_VIT = Family(
    modules=(
        ("patch_norm", "to_patch_embedding.to_patch_tokens.1"),
        ("patch_linear", "to_patch_embedding.to_patch_tokens.2"),
        (r"attention_(\d+)", r"transformer.layers.\1.0.fn"),
        (r"mlp_(\d+)", r"transformer.layers.\1.1.fn"),
        (r"fn\.norm", "norm"),
        (r"fn\.qkv", "fn.to_qkv"),
        (r"fn\.out", "fn.to_out.0"),
        (r"fn\.linear1", "fn.net.0"),
        (r"fn\.linear2", "fn.net.3"),
        ("head_norm", "mlp_head.0"),
        ("head_linear", "mlp_head.1"),
    ),
    sizes={
        "num_classes": (("mlp_head.1.bias", 0), ("mlp_head.1.weight", 0)),
        "dim": (("cls_token", 2), ("pos_embedding", 2), ("mlp_head.0.weight", 0)),
        "mlp_dim": (("transformer.layers.0.1.fn.net.0.bias", 0), ("transformer.layers.0.1.fn.net.0.weight", 0)),
        "heads x 64": tuple((f"transformer.layers.{i}.0.fn.to_out.0.weight", 1) for i in range(3)),
        "patch values": (
            ("to_patch_embedding.to_patch_tokens.1.weight", 0),
            ("to_patch_embedding.to_patch_tokens.1.bias", 0),
            ("to_patch_embedding.to_patch_tokens.2.weight", 1),
        ),
        "tokens": (("pos_embedding", 1),),
    },
    finish=_vit_options,
)
_UNET = Family(
    modules=(
        (r"^inc\.", "inc.double_conv."),
        (r"^(down\d+)\.", r"\1.maxpool_conv.1.double_conv."),
        (r"^(up\d+)\.", r"\1.conv.double_conv."),
        (r"\.conv1$", ".0"),
        (r"\.bn1$", ".1"),
        (r"\.conv2$", ".3"),
        (r"\.bn2$", ".4"),
        (r"^outc$", "outc.conv"),
    ),
    sizes={
        "width": (("inc.double_conv.0.weight", 0), ("inc.double_conv.1.weight", 0), ("outc.conv.weight", 1)),
    },
    finish=_unet_options,
)

_MAE = Family(
    modules=((r"blocks_(\d+)", r"blocks.\1"), (r"\.fc", ".mlp.fc"), ("patch_embed", "patch_embed.proj")),
    sizes={
        "patch_size": (("patch_embed.proj.weight", 2), ("patch_embed.proj.weight", 3)),
        "width": (("cls_token", 2), ("norm.weight", 0), ("patch_embed.proj.bias", 0)),
        "decoder_width": (("mask_token", 2), ("decoder_norm.weight", 0), ("decoder_embed.bias", 0)),
    },
    finish=_mae_options,
)

FAMILIES: dict[str, Family] = {
    "resnet18": _RESNET,
    "resnet34": _RESNET,
    "resnet50": _RESNET,
    "imagenet_resnet18": _TORCHVISION_RESNET,
    "imagenet_resnet34": _TORCHVISION_RESNET,
    "imagenet_resnet50": _TORCHVISION_RESNET,
    "preact_resnet18": _RESNET,
    "vgg16": _VGG,
    "densenet121": _DENSENET,
    "vit": _VIT,
    "unet": _UNET,
    "mae": _MAE,
}

# The last part of a path; what is missing here keeps its name.
LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def with_own_names(name: str, entries: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns entries, those of torchvision's ResNet with a 3 x 3 stem under the names of the ResNet for small images.

    Many programs make just this of torchvision's: conv1 = Conv2d(3, 64, 3, 1, 1), maxpool = Identity().
    """
    if name not in _SMALL or "fc.weight" not in entries or "linear.weight" in entries:
        return dict(entries)
    if "conv1.weight" not in entries or entries["conv1.weight"].shape[2:] != (3, 3):
        return dict(entries)
    own = {re.sub(r"^fc\.", "linear.", key).replace(".downsample.", ".shortcut."): entries[key] for key in entries}
    return own if len(own) == len(entries) else dict(entries)  # some have both names


def heads(name: str) -> tuple[str, ...]:
    """Returns the entries by which a network is found among others: those of the last layer of a classifier."""
    sizes = FAMILIES[name].sizes
    places = sizes.get("num_classes") or tuple(place for places in sizes.values() for place in places)
    theirs = ("fc.weight", "fc.bias") if name in _SMALL else ()
    return (*(key for key, _ in places), *theirs)


def shows(name: str, entries: Collection[str]) -> bool:
    """Returns whether there is an entry that shows a size of the network."""
    return any(key in entries for places in FAMILIES[name].sizes.values() for key, _ in places)


def torch_name(name: str, path: tuple[str, ...]) -> str:
    """Returns PyTorch's name of the variable at `path`, (collection, module, ..., last), of network `name`."""
    modules = ".".join(path[1:-1])
    for pattern, replacement in FAMILIES[name].modules:
        modules = re.sub(pattern, replacement, modules)
    last = LEAVES.get(path[-1], path[-1])
    return f"{modules}.{last}" if modules else last
