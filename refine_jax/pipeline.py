"""The stages of a run, in order: victim, defend, evaluate."""

import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from refine_jax import attacks, datasets, environment, evaluation, victim
from refine_jax import settings as settings_lib
from refine_jax.attacks import kept
from refine_jax.attacks.trigger import Attack
from refine_jax.classifier import Classifier
from refine_jax.datasets.images import Dataset
from refine_jax.defenses.registry import DEFENSES
from refine_jax.errors import WorkdirError, choose
from refine_jax.files import hash_arrays, read_json, write_json
from refine_jax.keys import named_key
from refine_jax.training.loop import Journal, Outcome
from refine_jax.training.state import count_parameters
from refine_jax.workdir import SCHEMA, Record, Workdir

logger = logging.getLogger(__name__)

STAGES = ("victim", "defend", "evaluate")


def run(
    config: ml_collections.ConfigDict, workdir: str, stages: Sequence[str] = STAGES, *, overwrite: bool = False
) -> dict[str, Any] | None:
    """Runs the stages that are not done yet.

    Args:
        config: From a get_config() of configs/, with the command line's changes.
        workdir: Where everything is left, and where earlier outcomes are found.
        stages: Some of `STAGES`.
        overwrite: Whether stages that were done from other settings are deleted, instead of refused.

    Returns:
        What results.json holds; None where 'evaluate' is not among the stages.

    Raises:
        RefineError: Something that the user can mend; before any work where it can be known then.
    """
    for stage in stages:
        choose("stages", stage, STAGES)
    settings = settings_lib.complete(config)
    work = Workdir(workdir)
    dataset = load_dataset(settings)
    settings_lib.check(settings, dataset)
    attack = build_attack(settings, dataset)
    records = open_records(settings, work, overwrite=overwrite)
    work.create()
    write_json(work.settings, settings)

    if records["victim"].outcome is None:
        if "victim" not in stages or settings["victim"]["workdir"]:
            raise WorkdirError(f"{records['victim'].folder} holds no trained victim; stage 'victim' makes one")
        train_victim(settings, dataset, attack, work, records["victim"])
    attack, classifier = load_victim(settings, dataset, records["victim"])

    for name, record in records["defenses"].items():
        if "defend" in stages and record.outcome is None:
            train_defense(name, settings, dataset, classifier, work, records)
    return evaluate(settings, dataset, attack, classifier, work, records) if "evaluate" in stages else None


def load_dataset(settings: Mapping[str, Any]) -> Dataset:
    """Returns the data set of a configuration, cut to dataset.train_images.

    The images that stay are drawn by a rule of their own, not by the seed: it is the data set that is smaller.
    """
    section = settings["dataset"]
    dataset = datasets.load(section["name"], data_dir=section["data_dir"])
    return datasets.limit_training(dataset, section["train_images"])


def build_attack(settings: Mapping[str, Any], dataset: Dataset) -> Attack:
    """Draws the attack of a configuration; refuses one that cannot be planted into these images."""
    section = settings["attack"]
    options = {name: value for name, value in section[section["name"]].items() if value is not None}
    return attacks.build(
        section["name"],
        dataset.image_size,
        target=section["target"],
        rate=section["rate"],
        seed=settings["seed"],
        **options,
    )


def open_records(settings: Mapping[str, Any], work: Workdir, *, overwrite: bool) -> dict[str, Any]:
    """Opens the records of the stages, and refuses what was made from other settings, or deletes it.

    Returns:
        {'victim': its record, which is another run's where victim.workdir names one, 'defenses': {name: record}}.
    """
    borrowed = settings["victim"]["workdir"]
    home = Workdir(borrowed) if borrowed else work
    made_from = {
        "seed": settings["seed"],
        "dataset": {name: settings["dataset"][name] for name in ("name", "train_images")},
        "attack": settings["attack"],
        "victim": {name: value for name, value in settings["victim"].items() if name != "workdir"},
    }
    victim_record = Record(home.victim, made_from)
    if borrowed:
        # The seed of this run is the defense's: many may share one victim.
        victim_record.adopt("seed")
        victim_record.admit("victim", overwrite=False)
    elif victim_record.admit("victim", overwrite=overwrite):
        work.clear()

    section = {name: value for name, value in settings["defense"].items() if name != "names"}
    defenses = {}
    for name in settings["defense"]["names"]:
        settings_of = {"seed": settings["seed"], "defense": section, "victim_stage": victim_record.settings}
        defenses[name] = Record(work.defense(name), settings_of)
        defenses[name].admit(f"defend ({name})", overwrite=overwrite)
    return {"victim": victim_record, "defenses": defenses}


def train_victim(
    settings: Mapping[str, Any], dataset: Dataset, attack: Attack, work: Workdir, record: Record
) -> None:
    """Plants the attack into the training images, keeps what was drawn, and trains the victim on them."""
    record.begin()
    found = kept.load(work.attack)
    if found:
        attack = found.attack
    poisoned = attack.poison(
        dataset.train.images, dataset.train.labels, named_key(settings["seed"], "attack/poison")
    )
    if found is None:
        kept.save(work.attack, attack, poisoned)
    elif not np.array_equal(found.indices, poisoned.indices):
        raise WorkdirError(f"the images poisoned in {work.attack} are not those that would be poisoned now")
    logger.info(
        "attack: %s on class %d, %d of %d training images poisoned",
        attack.name,
        attack.target,
        len(poisoned.indices),
        len(poisoned.labels),
    )
    journal = make_journal(settings, work, record, {"attack_sha256": kept.load(work.attack).sha256})
    outcome = victim.train(dataset, attack, poisoned, settings["victim"], settings["seed"], journal)
    hashes = {**journal.identity, "victim_sha256": hash_arrays(outcome.state.variables)}
    record.finish({**hashes, **cost(outcome)})


def load_victim(settings: Mapping[str, Any], dataset: Dataset, record: Record) -> tuple[Attack, Classifier]:
    """Reads attack and victim from where they were left, and holds them to their hashes."""
    found = kept.load(record.folder.parent / "attack")
    variables = victim.load(record.folder / "checkpoints")
    if found is None or found.sha256 != record.outcome["attack_sha256"]:
        raise WorkdirError(f"the attack beside {record.folder} is not the one that this victim was trained with")
    if hash_arrays(variables) != record.outcome["victim_sha256"]:
        raise WorkdirError(f"the weights in {record.folder / 'checkpoints'} are not those that were trained")
    return found.attack, victim.to_classifier(variables, dataset, settings["victim"])


def train_defense(
    name: str,
    settings: Mapping[str, Any],
    dataset: Dataset,
    classifier: Classifier,
    work: Workdir,
    records: Mapping[str, Any],
) -> None:
    """Fits a defense to the victim, on clean training images; their labels stay here."""
    record = records["defenses"][name]
    record.begin()
    identity = {"victim_sha256": records["victim"].outcome["victim_sha256"]}
    journal = make_journal(settings, work, record, identity)
    defended, outcome = DEFENSES[name].fit(
        classifier, dataset.train.images, settings["defense"], settings["seed"], dataset.num_classes, journal
    )
    record.finish({**identity, "sha256": hash_arrays(parts_of(defended)), **cost(outcome)})


def evaluate(
    settings: Mapping[str, Any],
    dataset: Dataset,
    attack: Attack,
    classifier: Classifier,
    work: Workdir,
    records: Mapping[str, Any],
) -> dict[str, Any]:
    """Measures the victim alone and behind each defense, on whole test sets, and writes results.json."""
    hashes = {name: records["victim"].outcome[f"{name}_sha256"] for name in ("attack", "victim")}
    defended = {}
    for name, record in records["defenses"].items():
        if record.outcome is None:
            raise WorkdirError(f"{record.folder} holds no trained defense; stage 'defend' makes one")
        if record.outcome["victim_sha256"] != hashes["victim"]:
            raise WorkdirError(f"{record.folder} was trained for another victim; --overwrite trains it again")
        defended[name] = DEFENSES[name].load(record.folder / "checkpoints", classifier, settings["defense"])
        hashes[name] = hash_arrays(parts_of(defended[name]))
        if hashes[name] != record.outcome["sha256"]:
            raise WorkdirError(f"the weights in {record.folder / 'checkpoints'} are not those that were trained")
    if work.results.exists() and (results := read_json(work.results))["hashes"] == hashes:
        logger.info("evaluate: done before, in %s", work.results)
        return results

    logger.info("evaluate: %d test images, clean and triggered", len(dataset.test.labels))
    images, labels = dataset.test.images, dataset.test.labels
    triggered = attack.trigger(images)

    def measure(predictor, permutation=None):
        # Weights as an argument, so that the compiler does not fold them into the program.
        compiled = jax.jit(lambda predictor, images: predictor(images))
        predict = functools.partial(compiled, predictor)
        return evaluation.measure(predict, images, labels, triggered, attack.target, permutation)

    no_defense = measure(classifier)
    results = {
        "schema": SCHEMA,
        "settings": settings,
        "environment": environment.describe(),
        "hashes": hashes,
        "victim": costs(records["victim"]),
        "no_defense": no_defense,
        "defenses": {},
    }
    for name, defended_classifier in defended.items():
        figures = measure(defended_classifier, np.asarray(defended_classifier.permutation))
        der, interval = evaluation.defense_effectiveness(no_defense, figures)
        figures["der"], figures["ci95"]["der"] = der, interval
        results["defenses"][name] = {**figures, **costs(records["defenses"][name])}
    write_json(work.results, results)
    return results


def make_journal(settings: Mapping[str, Any], work: Workdir, record: Record, identity: dict[str, Any]) -> Journal:
    """Returns where the training of a stage leaves its traces."""
    run = settings["run"]
    return Journal(record.folder / "checkpoints", work.metrics, identity, run["log_every"], run["checkpoint_minutes"])


_COSTS = ("train_seconds", "train_images_per_second", "parameters")


def cost(outcome: Outcome) -> dict[str, Any]:
    """Returns what a training cost."""
    return dict(
        zip(_COSTS, (outcome.seconds, outcome.images_per_second, count_parameters(outcome.state.params)), strict=True)
    )


def costs(record: Record) -> dict[str, Any]:
    """Returns what the training of a stage cost, from its record."""
    return {name: record.outcome[name] for name in _COSTS}


def parts_of(defended) -> dict[str, Any]:
    """Returns what a defense has learned and drawn, for its hash."""
    return {"unet_variables": defended.unet_variables, "permutation": defended.permutation}
