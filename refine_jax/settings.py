"""The configuration: every field with its default, and the checks that come before any work."""

import functools
import json
import math
import numbers
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import ml_collections
from ml_collections import config_dict

from refine_jax import attacks, datasets, networks
from refine_jax.classifier import CHANNEL_ORDERS
from refine_jax.datasets import stream
from refine_jax.datasets.images import Dataset
from refine_jax.defenses import refine, registry
from refine_jax.defenses.registry import DEFENSES
from refine_jax.errors import RefineError, SettingError, choose, did_you_mean
from refine_jax.keys import LARGEST_SEED
from refine_jax.training import optimizer
from refine_jax.training.parallel import PRECISIONS, Execution, default_precision

# Rates at which the networks' reference implementations are trained; 0.1 where nothing stands.
_LEARNING_RATES = {"vgg16": 0.01, "vit": 0.001}

# In the place of an attack's name, where a victim is imported of which none is known.
NO_ATTACK = "none"
# The fields of section 'victim' that belong to one that is imported.
_IMPORT = ("checkpoint", "mean", "std", "channels", "input_size")

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

    A type stands where a field is open until `complete` fills it in.
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
                # A trained classifier in place of all that, and its preprocessing where its file does not say it.
                "checkpoint": str,
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
            },
            "run": {
                "log_every": 10,  # steps between two rows of metrics.jsonl
                # Between two checkpoints: whichever comes first. The steps are open: minutes alone.
                "checkpoint_minutes": 5.0,
                "checkpoint_steps": int,
                "keep_checkpoints": 2,  # the newest; the one with the lowest training loss stays beside them
                "devices": int,  # open: all that JAX sees
                "feed": str,  # where training images are, 'device' or 'host'; open: by their size
                "workers": 0,  # processes that decode streamed images; 0: threads
                "remat": False,  # whether networks take less memory and more time for gradients
                "steps_per_call": int,  # open: 10 on a GPU, 1 on a CPU
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


def complete(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Fills in what a configuration leaves open, and refuses what can be seen as impossible without data.

    Args:
        config: From a get_config(), with the command line's changes.

    Returns:
        A dict of JSON values with the fields of `default`; of the attacks' and data sets' options only those of the
        ones chosen.

    Raises:
        SettingError: The first field that is unknown or impossible.
    """
    settings = config.to_dict()
    given = dict(_leaves(settings))
    for field, value in given.items():
        check_field(field, value)
        _check_type(field, value)
    missing = [field for field in _types() if field not in given]
    if missing:
        raise RefineError(f"the configuration has no {missing[0]}: a get_config() begins with settings.default()")
    if settings["precision"] is None:
        settings["precision"] = default_precision()
    choose("precision", settings["precision"], PRECISIONS)
    settings["dataset"] = _complete_dataset(settings["dataset"])
    settings["attack"], settings["victim"] = _complete_victim(settings["attack"], settings["victim"])
    settings["defense"] = _complete_defense(settings["defense"])
    _check_values(settings)
    return json.loads(json.dumps(settings))


def _complete_dataset(section: Mapping[str, Any]) -> dict[str, Any]:
    """Refuses options that the data set does not take, and leaves them out."""
    general = {name: section[name] for name in ("name", "data_dir", "train_images")}
    options = {name: value for name, value in section.items() if name not in general}
    datasets.check_options(general["name"], options)
    return general | {name: options[name] for name in datasets.options(general["name"])}


def _complete_victim(attack: dict[str, Any], victim: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Leaves out what belongs to another attack, and either how a victim is trained or how one is imported."""
    imported = victim["checkpoint"] is not None
    names = (*attacks.names(), NO_ATTACK) if imported else attacks.names()
    if attack["name"] == NO_ATTACK and not imported:
        allowed = f"{', '.join(names)}; {NO_ATTACK} only with victim.checkpoint, which is not given"
        raise SettingError("attack.name", NO_ATTACK, allowed)
    chosen = choose("attack.name", attack["name"], names)
    choose("victim.name", victim["name"], networks.names())
    if imported and victim["workdir"] is not None:
        raise SettingError("victim.workdir", victim["workdir"], "nothing with victim.checkpoint: import it again")
    if imported and chosen != NO_ATTACK and attack["triggered_root"] is not None:
        raise SettingError("attack.triggered_root", attack["triggered_root"], f"only with attack.name={NO_ATTACK}")
    for section, field in [("victim", name) for name in _IMPORT] + [("attack", "triggered_root")]:
        value = {"victim": victim, "attack": attack}[section][field]
        if not imported and value is not None:
            raise SettingError(f"{section}.{field}", value, "nothing without victim.checkpoint")
    if victim["learning_rate"] is None:
        victim["learning_rate"] = _LEARNING_RATES.get(victim["name"], 0.1)
    kept = ("name", "workdir", *_IMPORT) if imported else tuple(name for name in victim if name not in _IMPORT)
    options = [name for name, there in (("triggered_root", imported), (chosen, chosen != NO_ATTACK)) if there]
    return (
        {name: attack[name] for name in ("name", "target", "rate", *options)},
        {name: victim[name] for name in kept},
    )


def _complete_defense(section: Mapping[str, Any]) -> dict[str, Any]:
    """Refuses names that there are not, and leaves out what belongs to defenses that were not chosen."""
    names = section["names"]
    for name in names:
        choose("defense.names", name, DEFENSES)
    if not names or len(set(names)) < len(names):
        raise SettingError("defense.names", names, f"one or more of {', '.join(DEFENSES)}, each once")
    chosen = {name: section[name] for name in names if name != "refine"}
    if "refine" in names:
        own = {field: section[field] for field in refine.DEFAULTS}
        chosen = {**refine.complete(ml_collections.ConfigDict(own)), **chosen}
    return {"names": names, **chosen}


def _check_values(settings: Mapping[str, Any]) -> None:
    victim, attack, run = settings["victim"], settings["attack"], settings["run"]
    if "checkpoint" in victim:
        _check_import(victim)
    else:
        optimizer.check("victim", victim)
    if "refine" in settings["defense"]["names"]:
        optimizer.check("defense", settings["defense"])
    for field, value, fine, allowed in (
        ("seed", settings["seed"], 0 <= settings["seed"] <= LARGEST_SEED, f"0 to {LARGEST_SEED}"),
        ("victim.width", victim.get("width"), victim.get("width", 1) >= 1, "1 or more"),
        ("attack.rate", attack["rate"], attack["rate"] is None or 0 < attack["rate"] <= 1, "above 0 and at most 1"),
        ("attack.target", attack["target"], attack["target"] >= 0, "a class, counted from 0"),
        ("run.log_every", run["log_every"], run["log_every"] >= 1, "1 or more"),
        ("run.checkpoint_minutes", run["checkpoint_minutes"], run["checkpoint_minutes"] > 0, "above 0"),
        (
            "run.checkpoint_steps",
            run["checkpoint_steps"],
            run["checkpoint_steps"] is None or run["checkpoint_steps"] >= 1,
            "1 or more",
        ),
        ("run.keep_checkpoints", run["keep_checkpoints"], run["keep_checkpoints"] >= 1, "1 or more"),
        ("run.devices", run["devices"], run["devices"] is None or run["devices"] >= 1, "1 or more"),
        ("run.workers", run["workers"], run["workers"] >= 0, "0 or more"),
        (
            "run.steps_per_call",
            run["steps_per_call"],
            run["steps_per_call"] is None or run["steps_per_call"] >= 1,
            "1 or more",
        ),
    ):
        if not fine:
            raise SettingError(field, value, allowed)
    if run["feed"] is not None:
        choose("run.feed", run["feed"], stream.PLACES)
    if run["remat"] and "remat" not in networks.options(victim["name"]):
        able = [name for name in networks.names() if "remat" in networks.options(name)]
        raise SettingError("run.remat", True, f"with {', '.join(able)}; victim.name is {victim['name']!r}")


def _check_import(victim: Mapping[str, Any]) -> None:
    for name in ("mean", "std"):
        value = victim[name]
        fine = value is None or (len(value) == 3 and all(isinstance(x, numbers.Real) for x in value))
        if not fine or (name == "std" and value is not None and not all(x > 0 for x in value)):
            allowed = "three numbers, one a channel, in units of [0, 1]" + (", above 0" if name == "std" else "")
            raise SettingError(f"victim.{name}", value, allowed)
    if victim["channels"] is not None:
        choose("victim.channels", victim["channels"], CHANNEL_ORDERS)
    if victim["input_size"] is not None and not 1 <= victim["input_size"] <= 4096:
        raise SettingError("victim.input_size", victim["input_size"], "1 to 4096")


def check(settings: Mapping[str, Any], dataset: Dataset) -> None:
    """Refuses what is impossible with these images.

    Args:
        settings: From `complete`.
        dataset: Already cut to dataset.train_images.

    Raises:
        SettingError: The first field that is impossible.
    """
    count, victim, target = len(dataset.train.labels), settings["victim"], settings["attack"]["target"]
    imported = "checkpoint" in victim
    if not imported and not (dataset.train.has_labels and dataset.test.has_labels):
        allowed = "images with labels, as a victim is trained and measured by them; or victim.checkpoint"
        raise SettingError("dataset.name", settings["dataset"]["name"], allowed)
    if target >= dataset.num_classes:
        raise SettingError("attack.target", target, f"a class of {dataset.name}, 0 to {dataset.num_classes - 1}")
    if not imported and victim["batch_size"] > count:
        raise SettingError("victim.batch_size", victim["batch_size"], f"at most the {count} training images")
    execution = Execution.of(settings)
    if not imported:
        execution.check_batch("victim.batch_size", victim["batch_size"])
    for name in settings["defense"]["names"]:
        section, own = registry.section(name), registry.settings_of(name, settings["defense"])
        if DEFENSES[name].NEEDS.labels and not dataset.train.has_labels:
            allowed = f"without {name}, which needs the training images' labels, and none are known"
            raise SettingError("defense.names", settings["defense"]["names"], allowed)
        DEFENSES[name].check(section, own, count, dataset.image_size)
        if "batch_size" in own:
            execution.check_batch(f"{section}.batch_size", own["batch_size"])


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


def type_of(field: str) -> type:
    """Returns the type of a field's values, a key of `KINDS`; object where they may be of several."""
    return _types()[field]


def _check_type(field: str, value: object) -> None:
    """Refuses a value of another type than the field's; None is one where the field may be left open."""
    kind, is_open = _types()[field], dict(_leaves(default().to_dict()))[field] is None
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


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Returns "field: old value -> new value" for each field in which two settings differ."""
    old_leaves, new_leaves = dict(_leaves(old)), dict(_leaves(new))
    fields = sorted({*old_leaves, *new_leaves})
    shown = lambda leaves, field: repr(leaves[field]) if field in leaves else "not there"  # noqa: E731
    return [
        f"{field}: {shown(old_leaves, field)} -> {shown(new_leaves, field)}"
        for field in fields
        if field not in old_leaves or field not in new_leaves or old_leaves[field] != new_leaves[field]
    ]


def _leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of a nested mapping."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
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
