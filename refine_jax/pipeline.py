"""The stages of a run, in order: victim, defend, evaluate, export, report.

    victim      plants the attack into the training images and trains a classifier on them       attack/, victim/
                or imports one that somebody else has trained                                    victim/
    defend      fits each defense to the frozen victim, on clean images without labels           defense/NAME/
    evaluate    measures the victim alone and behind each defense, on the whole test set         results.json
    export      writes each defended classifier as files that need nothing of this project       export/
    report      shows what came of it: a page, figures and tables                                report/

A stage that is done, from the same settings, is not run again.
"""

import functools
import logging
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections

from refine_jax import artifacts, asking, evaluation, export, import_stage, planting, report_stage, victim
from refine_jax.attacks.trigger import Attack
from refine_jax.classifier import Classifier
from refine_jax.defenses import refine
from refine_jax.defenses.registry import DEFENSES, clean_images, settings_of
from refine_jax.errors import choose
from refine_jax.evaluate_stage import COSTS, benign_file, evaluate, find_results
from refine_jax.files import hash_arrays, write_record
from refine_jax.opening import Run, open_run
from refine_jax.outcomes import hashes_of, is_done, load_defense, load_victim
from refine_jax.training import processes
from refine_jax.training.journal import Journal
from refine_jax.training.state import count_parameters

logger = logging.getLogger(__name__)

TRAININGS = ("victim", "defend")
STAGES = ("victim", "defend", "evaluate", "export", "report")


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
    if "report" in stages:
        report_stage.write(run)
    return results


def train_victim(run: Run, attack: Attack) -> None:
    """Plants the attack into the training images, keeps what was drawn, and trains the victim on them."""
    planting.require_same(attack, run.attack_folder)
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
    values = (outcome.seconds, outcome.images_per_second, count_parameters(outcome.state.params))
    run.victim.finish({**made, "steps": int(outcome.state.step), **dict(zip(COSTS, values, strict=True))})


def train_benign_classifier(run: Run) -> Classifier:
    """Trains what an attack needs that looks at a benign classifier, as the victim is trained but on clean images."""
    settings, test = run.settings["victim"], run.dataset.test
    journal = make_journal(run, run.attack_folder / "benign", {})
    outcome = victim.train_benign(run.dataset, settings, run.settings["seed"], journal, run.execution)
    classifier = victim.to_classifier(outcome.state.variables, run.dataset, settings)
    figures = evaluation.benign_accuracy(asking.compiled(classifier), test.images, test.labels)
    write_record(benign_file(run), figures)
    logger.info("attack: the benign classifier has a BA of %.2f %%", 100 * figures["ba"])
    return classifier


def train_defenses(run: Run) -> None:
    """Fits the defenses that are not done to the victim, on clean training images.

    The images' labels stay here, but for a defense that says that it needs them.
    """
    missing = {name: record for name, record in run.defenses.items() if not is_done(record)}
    if not missing:
        return
    _, classifier = load_victim(run)
    identity = {"victim_sha256": run.victim.require("victim")["victim_sha256"]}
    for name, record in missing.items():
        record.begin()
        clean = clean_images(name, run.settings["defense"], run.dataset.train, run.dataset.num_classes)
        fitted = DEFENSES[name].fit(
            classifier,
            clean,
            settings_of(name, run.settings["defense"]),
            run.settings["seed"],
            run.dataset.num_classes,
            make_journal(run, record.folder, identity),
            run.execution,
        )
        cost = {field: getattr(fitted, field) for field in ("steps", "parts", *COSTS, "findings")}
        record.finish({**identity, "sha256": hash_arrays(fitted.defended.parts()), **cost})


def export_defenses(run: Run) -> None:
    """Writes each defended classifier as files, with its figures where they are known; see `export.save`."""
    results, hashes = find_results(run), hashes_of(run)
    if len(run.defenses) > 1 and (run.work.export / artifacts.MANIFEST).is_file():
        shutil.rmtree(run.work.export)  # of when there was one, whose files lay where the others' folders are to lie
    for name in run.defenses:
        folder = run.work.export if len(run.defenses) == 1 else run.work.export / name
        figures = results and {"no_defense": results["no_defense"], "defended": results["defenses"][name]}
        record: dict[str, Any] = {"defense": name, "hashes": hashes, "figures": figures}
        if export.holds(folder, record):
            logger.info("export: done before, in %s", folder)
            continue
        _, classifier = load_victim(run)
        defended = load_defense(run, name, classifier)
        if not isinstance(defended, refine.Defended):
            logger.info("export: %s is not exported; only refine is", name)
            continue
        record |= {"settings": run.settings}
        export.save(defended, folder, class_names=run.dataset.class_names, record=record)
        logger.info("export: the classifier behind %s is in %s", name, folder)


def make_journal(run: Run, folder: pathlib.Path, identity: dict[str, Any]) -> Journal:
    """Returns where a training leaves its traces."""
    section = run.settings["run"]
    names = ("log_every", "checkpoint_minutes", "checkpoint_steps", "keep_checkpoints", "tensorboard")
    return Journal(folder / "checkpoints", run.work.metrics, identity, **{name: section[name] for name in names})
