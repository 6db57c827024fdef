"""Settings: a configuration with nothing left open, and the checks that come before any work."""

import contextlib
import json
import numbers
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections

from refine_jax import adaptive, attacks, datasets, fields, networks
from refine_jax.classifier import CHANNEL_ORDERS
from refine_jax.datasets import stream
from refine_jax.datasets.images import Dataset
from refine_jax.defenses import refine, registry
from refine_jax.defenses.registry import DEFENSES
from refine_jax.errors import RefineError, SettingError, choose
from refine_jax.fields import default as default
from refine_jax.fields import vary_by_attack as vary_by_attack
from refine_jax.keys import LARGEST_SEED
from refine_jax.training import determinism, events, optimizer
from refine_jax.training.parallel import PRECISIONS, Execution, default_precision

# Rates at which the networks' reference implementations are trained; 0.1 where nothing stands.
_LEARNING_RATES = {"vgg16": 0.01, "vit": 0.001}

# In the place of an attack's name, where a victim is imported of which none is known.
NO_ATTACK = "none"
# The fields of section 'victim' that belong to one that is imported.
_IMPORT = ("checkpoint", "entry", "mean", "std", "channels", "input_size")


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
    given = dict(fields.leaves(settings))
    for field, value in given.items():
        fields.check_field(field, value)
        fields.check_type(field, value)
    missing = [field for field in fields.names() if field not in given]
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
    knowledge = victim["adaptive"]["knowledge"]
    if imported and knowledge is not None:
        raise SettingError("victim.adaptive.knowledge", knowledge, "nothing with victim.checkpoint: it is trained")
    if knowledge is None:
        del victim["adaptive"]  # a victim of an attacker who knows nothing is what it was before there was a choice
    if victim["learning_rate"] is None:
        victim["learning_rate"] = _LEARNING_RATES.get(victim["name"], 0.1)
    if victim["entry"] is None:
        del victim["entry"]  # likewise of an import
    kept = ("name", "workdir", *_IMPORT) if imported else tuple(name for name in victim if name not in _IMPORT)
    options = [name for name, there in (("triggered_root", imported), (chosen, chosen != NO_ATTACK)) if there]
    return (
        {name: attack[name] for name in ("name", "target", "rate", *options)},
        {name: victim[name] for name in kept if name in victim},
    )


def _complete_defense(section: Mapping[str, Any]) -> dict[str, Any]:
    """Refuses names that there are not, and leaves out what belongs to defenses that were not chosen."""
    names = section["names"]
    for name in names:
        choose("defense.names", name, DEFENSES)
    if not names or len(set(names)) < len(names):
        raise SettingError("defense.names", names, f"one or more of {', '.join(DEFENSES)}, each once")
    chosen = {name: section[name] for name in names if name != "refine"}
    for name in names:
        for value in chosen.get(name, {}).get(registry.SWEEP) or ():
            field = f"{registry.section(name)}.{DEFENSES[name].STRENGTH}"
            with _as_sweep(name, chosen[name]):
                fields.check_type(field, value)
    if "refine" in names:
        own = {field: section[field] for field in refine.DEFAULTS}
        chosen = {**refine.complete(ml_collections.ConfigDict(own)), **chosen}
    return {"names": names, **chosen}


@contextlib.contextmanager
def _as_sweep(name: str, own: Mapping[str, Any]) -> Iterator[None]:
    """Says of a value that is impossible that it is one of the sweep's."""
    try:
        yield
    except SettingError as error:
        field, allowed = f"{registry.section(name)}.{registry.SWEEP}", f"values of {DEFENSES[name].STRENGTH}, each "
        raise SettingError(field, tuple(own[registry.SWEEP]), allowed + error.allowed) from None


def _check_values(settings: Mapping[str, Any]) -> None:
    victim, attack, run = settings["victim"], settings["attack"], settings["run"]
    if "checkpoint" in victim:
        _check_import(victim)
    else:
        optimizer.check("victim", victim)
    if "adaptive" in victim:
        adaptive.check(victim["adaptive"])
        _check_known(victim, settings["defense"])
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
    if "width" in victim:
        networks.check_width("victim.width", victim["width"], fields.default().victim.width, victim["name"])
    events.check("run.tensorboard", run["tensorboard"])
    if run["feed"] is not None:
        choose("run.feed", run["feed"], stream.PLACES)
    if run["remat"] and "remat" not in networks.options(victim["name"]):
        able = [name for name in networks.names() if "remat" in networks.options(name)]
        raise SettingError("run.remat", True, f"with {', '.join(able)}; victim.name is {victim['name']!r}")


def _check_known(victim: Mapping[str, Any], defense: Mapping[str, Any]) -> None:
    """Refuses an attacker who is said to know a mapping, and would be trained with another one."""
    mapping = defense.get("mapping", "derangement")
    if victim["adaptive"]["knowledge"] == "known" and victim["workdir"] is None and mapping != "derangement":
        allowed = f"unknown or guessed with defense.mapping={mapping}: who knows the mapping knows a derangement"
        raise SettingError("victim.adaptive.knowledge", "known", allowed)


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
    determinism.check("run.deterministic", settings["run"]["deterministic"])
    execution = Execution.of(settings)
    if not imported and not victim["workdir"]:  # one that is borrowed is trained already
        execution.check_batch("victim.batch_size", victim["batch_size"])
    for name in settings["defense"]["names"]:
        section, own = registry.section(name), registry.settings_of(name, settings["defense"])
        if DEFENSES[name].NEEDS.labels and not dataset.train.has_labels:
            allowed = f"without {name}, which needs the training images' labels, and none are known"
            raise SettingError("defense.names", settings["defense"]["names"], allowed)
        rows = registry.clean_rows(name, settings["defense"], dataset.train.labels, dataset.num_classes)
        available = count if rows is None else len(rows)
        DEFENSES[name].check(section, own, available, dataset.image_size)
        for variant in registry.variants(name, settings["defense"], dataset.image_size).values():
            with _as_sweep(name, settings["defense"][name]):
                DEFENSES[name].check(section, variant, available, dataset.image_size)
                if hasattr(DEFENSES[name], "check_strength"):
                    DEFENSES[name].check_strength(section, own, variant[DEFENSES[name].STRENGTH])
        for field, batch_size in registry.shared_batches(name, settings["defense"]).items():
            execution.check_batch(field, batch_size)
