"""The classifiers, by name."""

import dataclasses
from functools import partial
from typing import Any

from flax import linen as nn

from refine_jax.errors import SettingError, choose, did_you_mean
from refine_jax.networks import layers
from refine_jax.networks.densenet import DenseNet
from refine_jax.networks.preact_resnet import PreActResNet
from refine_jax.networks.resnet import BasicBlock, Bottleneck, ResNet
from refine_jax.networks.vgg import VGG
from refine_jax.networks.vit import ViT

NETWORKS: dict[str, partial] = {
    "resnet18": partial(ResNet, stages=(2, 2, 2, 2), block=BasicBlock, imagenet_stem=False),
    "resnet34": partial(ResNet, stages=(3, 4, 6, 3), block=BasicBlock, imagenet_stem=False),
    "resnet50": partial(ResNet, stages=(3, 4, 6, 3), block=Bottleneck, imagenet_stem=False),
    "imagenet_resnet18": partial(ResNet, stages=(2, 2, 2, 2), block=BasicBlock, imagenet_stem=True),
    "imagenet_resnet34": partial(ResNet, stages=(3, 4, 6, 3), block=BasicBlock, imagenet_stem=True),
    "imagenet_resnet50": partial(ResNet, stages=(3, 4, 6, 3), block=Bottleneck, imagenet_stem=True),
    "preact_resnet18": partial(PreActResNet, stages=(2, 2, 2, 2)),
    "vgg16": partial(VGG, stages=((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3)),
    "densenet121": partial(DenseNet, blocks=(6, 12, 24, 16), growth=32),
    "vit": partial(ViT),
}


def names() -> tuple[str, ...]:
    """Returns the names that `build` takes."""
    return tuple(NETWORKS)


def options(name: str) -> tuple[str, ...]:
    """Returns the options that `build(name, num_classes, ...)` takes.

    Raises:
        SettingError: There is no network of this name.
    """
    network = NETWORKS[choose("network", name, NETWORKS)]
    fixed = {*network.keywords, "num_classes", "parent", "name"}
    return tuple(field.name for field in _fields(name) if field.name not in fixed)


def check_width(field: str, value: int, usual: int, name: str) -> None:
    """Refuses a width for a network that has none to be set, which would be trained as if it had been left alone.

    Args:
        field: Of the configuration.
        value: That it has.
        usual: That it has by itself.
        name: Of the network.

    Raises:
        SettingError: It is another than the usual one, and the network does not take it.
    """
    if value != usual and "width" not in options(name):
        able = ", ".join(other for other in NETWORKS if "width" in options(other))
        raise SettingError(field, value, f"{usual}, the only one that {name} has; any with {able}")


def build(name: str, num_classes: int, **settings: Any) -> nn.Module:
    """Returns the classifier of this name.

    `module.apply(variables, images, train=False)` gives logits [N, num_classes] of float images [N, H, W, 3];
    `method='features'` gives the last feature map and `method='head'` takes it to the logits.

    Args:
        name: One of `names()`.
        num_classes: Number of classes.
        **settings: Some of `options(name)`.

    Raises:
        SettingError: Unknown name or option, or a value that the network cannot have.
    """
    allowed = options(name)
    layers.require_positive("num_classes", num_classes)
    whole = [field.name for field in _fields(name) if field.type is int]
    for option, value in settings.items():
        if option not in allowed:
            raise SettingError(
                f"{name}.{option}", value, f"no such option, only {', '.join(allowed)}{did_you_mean(option, allowed)}"
            )
        if option in whole:
            layers.require_positive(f"{name}.{option}", value)
    return NETWORKS[name](num_classes=num_classes, **settings)


def _fields(name: str) -> tuple[dataclasses.Field, ...]:
    module: Any = NETWORKS[name].func  # a class of linen, of which its decorator makes a dataclass
    return dataclasses.fields(module)
