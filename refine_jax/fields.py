"""The fields of a configuration: each with its default and its type, and how one is told from another."""

import functools
import math
import numbers
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import ml_collections
from ml_collections import config_dict

from refine_jax import adaptive, attacks
from refine_jax.defenses import registry
from refine_jax.errors import SettingError, did_you_mean
from refine_jax.training import optimizer

# What may stand in a field of each type.
KINDS = {
    int: "a whole number",
    float: "a finite number",
    str: "a text",
    bool: "true or false",
    tuple: "a tuple, such as (0.5, 0.75)",
}


def default() -> ml_collections.ConfigDict:
    """Returns the paper's setting on CIFAR-10; every get_config() of configs/ starts from it.

    A type stands where a field is open until `settings.complete` fills it in.
    """
    return _config_dict(
        {
            "seed": 0,
            "precision": str,  # open: bfloat16 on a GPU, float32 on a CPU
            "dataset": {
                "name": "cifar10",
                "data_dir": str,  # open: where TFDS keeps its data
                "train_images": int,  # open: all
                # Options of some data sets: given with another one they are refused, see `datasets.options`.
                "root": str,  # where a user's own images lie
                "classes": tuple,
                "per_class": tuple,  # images of each class to train and to test on
                "test_root": str,  # where those to test on lie, if not below root
                "image_size": int,  # side to bring pictures to
                "decoded": bool,  # whether pictures are decoded once and kept; open: by size
                "class_names": tuple,  # in the order of the classifier's outputs
            },
            "attack": {
                "name": "badnets",
                "target": 0,
                "rate": float,  # open: the attack's own
                "triggered_root": str,  # with victim.checkpoint: a folder of triggered test pictures
                **{name: attacks.options(name) for name in attacks.names()},
            },
            "victim": {
                "workdir": str,  # another run's, whose attack and victim are taken
                "name": "resnet18",
                "width": 64,
                **optimizer.DEFAULTS,
                "batch_size": 128,
                "learning_rate": float,  # open: by network
                "decay": 0.1,
                "adaptive": adaptive.DEFAULTS,  # an attacker who knows the defense
                # A trained classifier in place of all that, and its preprocessing where its file does not say it.
                "checkpoint": str,
                "entry": str,  # which of several networks in the file; open: the one that there is
                "mean": tuple,
                "std": tuple,
                "channels": str,
                "input_size": int,
            },
            "defense": {
                "names": ("refine",),
                **registry.defaults(),
                # Open: what the preset says. A base temperature of 0 is no factor in front of the contrastive loss.
                "loss": str,
                "temperature": float,
                "base_temperature": float,
                "unet_input": str,
                "mapping_seed": int,  # open: the seed
                "clean_classes": tuple,  # open: all
            },
            "run": {
                "log_every": 10,  # steps between two rows of metrics.jsonl
                "tensorboard": False,  # whether the rows are written as event files too
                # Between two checkpoints: whichever comes first. The steps are open: minutes alone.
                "checkpoint_minutes": 5.0,
                "checkpoint_steps": int,
                "keep_checkpoints": 2,  # the newest; the one with the lowest training loss stays beside them
                "devices": int,  # open: all that JAX sees
                "feed": str,  # where training images are, 'device' or 'host'; open: by their size
                "workers": 0,  # processes that decode streamed images; 0: threads
                "remat": False,  # whether networks take less memory and more time for gradients
                "steps_per_call": int,  # open: 10 on a GPU, 1 on a CPU
                "deterministic": False,  # whether a GPU comes to the same bits each time, which may take longer
            },
        }
    )


def vary_by_attack(config: ml_collections.ConfigDict, field: str, values: Mapping[str, Any]) -> None:
    """Lets a field's value follow the attack that is chosen, now or later, until the field itself is set.

    Args:
        config: From `default`.
        field: Dotted name.
        values: Name of an attack to the value with it; with the others the field stays what it is.
    """
    section, _, name = field.rpartition(".")
    parent = functools.reduce(lambda config, part: config[part], section.split("."), config)
    kind, otherwise = parent.get_type(name), parent[name]
    follow = _Operation(lambda _, attack: values.get(attack, otherwise), (config.attack.get_ref("name"),))
    # A lazy reference; what it is made with is not used, but must not be None.
    parent[name] = config_dict.FieldReference(kind(), field_type=kind, op=follow)


class _Operation(NamedTuple):
    """What a lazy reference of ml_collections computes: fn(its own value, *args)."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]


def check_field(field: str, value: object) -> None:
    """Refuses a field that no configuration has, with the nearest that there is.

    Args:
        field: Dotted name, without 'config.'.
        value: What was to be set, for the error.

    Raises:
        SettingError: There is no such field.
    """
    if field in _types():
        return
    # The fields of the section that it is, or is in, or, where there is no such section, the sections.
    for section in (field, field.rpartition(".")[0]):
        there = [name for name in _types() if section and name.startswith(f"{section}.")]
        if there:
            break
    else:
        there = list(dict.fromkeys(name.partition(".")[0] for name in _types()))
    raise SettingError(field, value, f"no other fields than {', '.join(there)}{did_you_mean(field, _types())}")


def names() -> tuple[str, ...]:
    """Returns the dotted names of all fields."""
    return tuple(_types())


def type_of(field: str) -> type:
    """Returns the type of a field's values, a key of `KINDS`; object where they may be of several."""
    return _types()[field]


def check_type(field: str, value: object) -> None:
    """Refuses a value of another type than the field's; None is one where the field may be left open.

    Raises:
        SettingError: The value is of another type.
    """
    kind, is_open = _types()[field], field in _open()
    fine = {
        int: isinstance(value, numbers.Integral) and not isinstance(value, bool),
        float: isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value),
    }.get(kind, isinstance(value, kind))
    if not fine and not (value is None and is_open):
        raise SettingError(field, value, KINDS[kind])


@functools.cache
def _types() -> dict[str, type]:
    """Dotted names of all fields, and their types."""

    def of(config: ml_collections.ConfigDict, prefix: str) -> Iterator[tuple[str, type]]:
        for name, value in config.items():
            if isinstance(value, ml_collections.ConfigDict):
                yield from of(value, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}", config.get_type(name)

    return dict(of(default(), ""))


@functools.cache
def _open() -> frozenset[str]:
    """Dotted names of the fields that may be left open."""
    return frozenset(name for name, value in leaves(default().to_dict()) if value is None)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Returns "field: old value -> new value" for each field in which two settings differ."""
    before, after = dict(leaves(old)), dict(leaves(new))
    shown = lambda values, field: repr(values[field]) if field in values else "not there"  # noqa: E731
    return [
        f"{field}: {shown(before, field)} -> {shown(after, field)}"
        for field in sorted({*before, *after})
        if field not in before or field not in after or before[field] != after[field]
    ]


def leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of a nested mapping."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{name}.")
        elif not isinstance(value, Mapping):
            yield f"{prefix}{name}", value


def _config_dict(fields: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """A ConfigDict of nested mappings, in which a type becomes an open field of this type."""
    config = ml_collections.ConfigDict()
    for name, value in fields.items():
        if isinstance(value, Mapping):
            value = _config_dict(value)
        elif isinstance(value, type):
            value = config_dict.placeholder(value)
        config[name] = value
    return config
