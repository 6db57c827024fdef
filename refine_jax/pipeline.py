"""The stages of a run, in order: victim, defend, evaluate, export.

    victim      plants the attack into the training images and trains a classifier on them       attack/, victim/
                or imports one that somebody else has trained                                    victim/
    defend      fits each defense to the frozen victim, on clean images without labels           defense/NAME/
    evaluate    measures the victim alone and behind each defense, on the whole test set         results.json
    export      writes each defended classifier as files that need nothing of this project       export/

A stage that is done, from the same settings, is not run again.
"""

import functools
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from refine_jax import doubts, environment, evaluation, export, import_stage, planting, victim
from refine_jax import triggered as triggered_lib
from refine_jax.attacks import kept
from refine_jax.attacks.trigger import Attack
from refine_jax.classifier import Classifier
from refine_jax.defenses.registry import DEFENSES
from refine_jax.errors import WorkdirError, choose
from refine_jax.files import hash_arrays, read_record, write_record
from refine_jax.opening import Run, open_run
from refine_jax.training import processes
from refine_jax.training.journal import Journal
from refine_jax.training.loop import Outcome
from refine_jax.training.state import count_parameters
from refine_jax.workdir import SCHEMA, Record

logger = logging.getLogger(__name__)

TRAININGS = ("victim", "defend")
STAGES = ("victim", "defend", "evaluate", "export")


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
    with open_run(config, workdir, overwrite=overwrite) as (this, attack):
        return run_stages(this, attack, stages)


def turns(stages: Sequence[str]) -> list[list[str]]:
    """Returns the stages of this process, in the turns in which all take them: `run` is called for each of these.

    Alone, a process takes all of them in one turn. Several take a turn for each training, which begins with what the
    first has written of the one before; what is left, the first does by itself at the end.
    """
    for stage in stages:
        choose("stages", stage, STAGES)
    if jax.process_count() == 1:
        return [list(stages)]
    *before, last = [[stage] for stage in TRAININGS if stage in stages] or [[]]
    rest = [stage for stage in stages if stage not in TRAININGS and processes.is_first()]
    return [*before, last + rest]


def run_stages(run: Run, attack: Attack | None, stages: Sequence[str]) -> dict[str, Any] | None:
    """Runs the stages that are not done yet; arguments and outcome as of `run`."""
    if "victim" in stages and not run.settings["victim"]["workdir"] and not is_done(run.victim):
        if run.imported is not None:
            import_stage.run(run.imported, run.dataset, run.triggered, run.victim)
        elif attack is not None:
            train_victim(run, attack)
    if "defend" in stages:
        train_defenses(run)
    results = evaluate(run) if "evaluate" in stages else None
    if "export" in stages:
        export_defenses(run)
    return results


def train_victim(run: Run, attack: Attack) -> None:
    """Plants the attack into the training images, keeps what was drawn, and trains the victim on them."""
    run.victim.begin()
    seed, dataset = run.settings["seed"], run.dataset
    planted, poisoned = planting.plant(
        dataset, attack, run.attack_folder, seed, functools.partial(train_benign_classifier, run)
    )
    logger.info(
        "attack: %s, target %d: %d of %d training images poisoned, %d more changed under their own label; see %s",
        attack.name,
        attack.target,
        len(planted.indices),
        len(poisoned.labels),
        len(planted.cover_indices),
        run.attack_folder / planting.SHEET,
    )
    identity = {"attack_sha256": planted.sha256}
    journal = make_journal(run, run.victim.folder, identity)
    outcome = victim.train(dataset, planted.attack, poisoned, run.settings["victim"], seed, journal, run.execution)
    variables = outcome.state.variables
    described = victim.to_classifier(variables, dataset, run.settings["victim"]).describe()
    made = {**identity, "victim_sha256": hash_arrays(variables), "classifier": described}
    run.victim.finish({**made, **summarize(outcome)})


def train_benign_classifier(run: Run) -> Classifier:
    """Trains what an attack needs that looks at a benign classifier, as the victim is trained but on clean images."""
    settings, test = run.settings["victim"], run.dataset.test
    journal = make_journal(run, run.attack_folder / "benign", {})
    outcome = victim.train_benign(run.dataset, settings, run.settings["seed"], journal, run.execution)
    classifier = victim.to_classifier(outcome.state.variables, run.dataset, settings)
    figures = evaluation.benign_accuracy(evaluation.compiled(classifier), test.images, test.labels)
    write_record(benign_file(run), figures)
    logger.info("attack: the benign classifier has a BA of %.2f %%", 100 * figures["ba"])
    return classifier


def load_victim(run: Run) -> tuple[Attack | None, Classifier]:
    """Reads victim and, where it was planted here, attack from where they were left; holds them to their hashes."""
    outcome, attack = run.victim.require("victim"), None
    if run.imported is None:
        planted = kept.load(run.attack_folder)
        if planted.sha256 != outcome["attack_sha256"]:
            raise WorkdirError(f"{run.attack_folder} is not the attack that the victim beside it was trained with")
        attack = planted.attack
    return attack, victim.load_classifier(run.victim.folder, outcome, run.dataset, run.settings["victim"])


def train_defenses(run: Run) -> None:
    """Fits the defenses that are not done to the victim, on clean training images; their labels stay here."""
    missing = {name: record for name, record in run.defenses.items() if not is_done(record)}
    if not missing:
        return
    _, classifier = load_victim(run)
    identity = {"victim_sha256": run.victim.require("victim")["victim_sha256"]}
    for name, record in missing.items():
        record.begin()
        defended, outcome = DEFENSES[name].fit(
            classifier,
            run.dataset.train.images,
            run.settings["defense"],
            run.settings["seed"],
            run.dataset.num_classes,
            make_journal(run, record.folder, identity),
            run.execution,
        )
        record.finish({**identity, "sha256": hash_arrays(parts_of(defended)), **summarize(outcome)})


def load_defense(run: Run, name: str, classifier: Classifier) -> Any:
    """Reads a defended classifier from where it was left, and holds it to its hash."""
    record = run.defenses[name]
    outcome, checkpoints = record.require("defend"), checkpoints_of(record)
    if outcome["victim_sha256"] != run.victim.require("victim")["victim_sha256"]:
        raise WorkdirError(f"{record.folder} was trained for another victim: delete it, and it is trained again")
    defended = DEFENSES[name].load(checkpoints, classifier, run.settings["defense"], run.dataset.image_size)
    if hash_arrays(parts_of(defended)) != outcome["sha256"]:
        raise WorkdirError(f"the weights in {checkpoints} are not those that were trained")
    return defended


def evaluate(run: Run) -> dict[str, Any]:
    """Measures the victim alone and behind each defense, on the whole test set, and writes results.json."""
    attack, classifier = load_victim(run)
    defended = {name: load_defense(run, name, classifier) for name in run.defenses}
    if (results := find_results(run)) is not None:
        logger.info("evaluate: done before, in %s", run.work.results)
        say_doubts(results)
        return results

    test, outcome = run.dataset.test, run.victim.require("victim")
    images, labels = test.images, triggered_lib.known_labels(test)
    shown = run.triggered if attack is None else triggered_lib.of_attack(attack, test)
    logger.info("evaluate: %d test images, clean%s", len(images), "" if shown is None else " and triggered")

    def measure(classifier, permutation=None):
        predict = evaluation.compiled(classifier)
        if shown is None:
            return evaluation.measure(predict, images, labels, None, 0, permutation)
        return evaluation.measure(predict, images, labels, shown.images, shown.target, permutation, shown.labels)

    no_defense = measure(classifier)
    defenses = {}
    for name, defended_classifier in defended.items():
        figures = measure(defended_classifier, np.asarray(defended_classifier.permutation))
        der, interval = evaluation.defense_effectiveness(no_defense, figures)
        figures["der"], figures["ci95"]["der"] = der, interval
        if labels is None:
            same = evaluation.agreement(
                evaluation.compiled(classifier), evaluation.compiled(defended_classifier), images
            )
            figures["agreement"], figures["counts"]["agreement"], figures["ci95"]["agreement"] = same
        defenses[name] = {**figures, **costs(run.defenses[name].require("defend"))}
    results = {
        "schema": SCHEMA,
        "settings": run.settings,
        "environment": environment.describe(),
        "hashes": hashes_of(run),
        "attack": describe_attack(run),
        "victim": {**costs(outcome), "imported": outcome.get("imported")},
        "no_defense": no_defense,
        "defenses": defenses,
        "warnings": doubts.find(no_defense, defenses, labels),
    }
    write_record(run.work.results, results)
    say_doubts(results)
    return results


def say_doubts(results: Mapping[str, Any]) -> None:
    """Says in the log what makes the figures doubtful; the first versions of results.json say nothing of it."""
    for doubt in results.get("warnings", ()):
        logger.warning("WARNING: %s", doubt)


def hashes_of(run: Run) -> dict[str, str | None]:
    """Returns the SHA-256 of attack, where one is known, victim and defenses, of stages that are done."""
    outcome = run.victim.require("victim")
    hashes = {name: outcome[f"{name}_sha256"] for name in ("attack", "victim")}
    return hashes | {name: record.require("defend")["sha256"] for name, record in run.defenses.items()}


def find_results(run: Run) -> dict[str, Any] | None:
    """Returns what results.json holds, None where it is not there or of others than these victim and defenses."""
    if not run.work.results.exists():
        return None
    try:
        results = read_record(run.work.results, ())  # without a checksum it is of the first versions
    except WorkdirError:
        logger.warning("%s is damaged, or of an older version: everything is measured anew", run.work.results)
        return None
    return results if results["hashes"] == hashes_of(run) else None


def export_defenses(run: Run) -> None:
    """Writes each defended classifier as files, with its figures where they are known; see `export.save`."""
    results, hashes = find_results(run), hashes_of(run)
    for name in run.defenses:
        folder = run.work.export if len(run.defenses) == 1 else run.work.export / name
        figures = results and {"no_defense": results["no_defense"], "defended": results["defenses"][name]}
        record: dict[str, Any] = {"defense": name, "hashes": hashes, "figures": figures}
        if export.holds(folder, record):
            logger.info("export: done before, in %s", folder)
            continue
        _, classifier = load_victim(run)
        defended = load_defense(run, name, classifier)
        record |= {"settings": run.settings}
        export.save(defended, folder, class_names=run.dataset.class_names, record=record)
        logger.info("export: the classifier behind %s is in %s", name, folder)


def benign_file(run: Run) -> pathlib.Path:
    """Where the figures of an attack's benign classifier stand."""
    return run.attack_folder / "benign.json"


def describe_attack(run: Run) -> dict[str, Any]:
    """Returns how many images the attack has changed, and how good its benign classifier is, where it has one.

    Of an imported victim's attack no more is known than its name and target.
    """
    if run.imported is not None:
        target = None if run.triggered is None else run.triggered.target
        return {"name": run.settings["attack"]["name"], "target": target}
    planted = kept.load(run.attack_folder)
    return {
        "name": planted.attack.name,
        "target": planted.attack.target,
        "rate": planted.attack.rate,
        "poisoned_images": len(planted.indices),
        "cover_images": len(planted.cover_indices),
        "benign_classifier": read_record(benign_file(run), BENIGN) if benign_file(run).exists() else None,
    }


def checkpoints_of(record: Record) -> pathlib.Path:
    """Where the checkpoints of a stage lie."""
    return record.folder / "checkpoints"


def is_done(record: Record) -> bool:
    """Returns whether a stage has come to its end, and its last checkpoint is there.

    One that turned out to be damaged is deleted by the user; the training then goes on from the one before.
    """
    if record.outcome is None:
        return False
    step = record.outcome.get("steps")  # the first versions have not noted it
    return step is None or (checkpoints_of(record) / str(step)).exists()


def make_journal(run: Run, folder: pathlib.Path, identity: dict[str, Any]) -> Journal:
    """Returns where a training leaves its traces."""
    section = run.settings["run"]
    names = ("log_every", "checkpoint_minutes", "checkpoint_steps", "keep_checkpoints")
    return Journal(folder / "checkpoints", run.work.metrics, identity, **{name: section[name] for name in names})


BENIGN = ("ba", "counts", "ci95")
_COSTS = ("train_seconds", "train_images_per_second", "parameters")


def summarize(outcome: Outcome) -> dict[str, Any]:
    """Returns how long a training was, and what it cost."""
    values = (outcome.seconds, outcome.images_per_second, count_parameters(outcome.state.params))
    return {"steps": int(outcome.state.step), **dict(zip(_COSTS, values, strict=True))}


def costs(outcome: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a stage's training cost, from what its record says."""
    return {name: outcome[name] for name in _COSTS}


def parts_of(defended: Any) -> dict[str, Any]:
    """Returns what a defense has learned and drawn, for its hash."""
    return {"unet_variables": defended.unet_variables, "permutation": defended.permutation}
