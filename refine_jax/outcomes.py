"""Reads what the trainings of a run have left, and holds it to the hashes that were noted when it was made."""

import pathlib
from collections.abc import Mapping
from typing import Any

from refine_jax import victim
from refine_jax.attacks import kept
from refine_jax.attacks.trigger import Attack
from refine_jax.classifier import Classifier
from refine_jax.defenses.registry import DEFENSES, section, settings_of
from refine_jax.errors import WorkdirError
from refine_jax.files import hash_arrays
from refine_jax.opening import Run
from refine_jax.workdir import Record


def load_victim(run: Run) -> tuple[Attack | None, Classifier]:
    """Reads victim and, where it was planted here, attack from where they were left; holds them to their hashes."""
    outcome, attack = run.victim.require("victim"), None
    if run.imported is None:
        planted = kept.load(run.attack_folder)
        if planted.sha256 != outcome["attack_sha256"]:
            raise WorkdirError(f"{run.attack_folder} is not the attack that the victim beside it was trained with")
        attack = planted.attack
    return attack, victim.load_classifier(run.victim.folder, outcome, run.dataset, run.settings["victim"])


def load_defense(run: Run, name: str, classifier: Classifier, variant: Mapping[str, Any] | None = None) -> Any:
    """Reads a defended classifier from where it was left, and holds it to its hash.

    Args:
        run: Of the defense.
        name: Of the defense.
        classifier: The victim.
        variant: Settings from `registry.variants` to load it with; None: those that it was fitted with.
    """
    record = run.defenses[name]
    outcome, checkpoints = record.require("defend"), checkpoints_of(record)
    if outcome["victim_sha256"] != run.victim.require("victim")["victim_sha256"]:
        raise WorkdirError(f"{record.folder} was trained for another victim: delete it, and it is trained again")
    if missing := _missing(record):  # else an earlier one would be read, and of a variant nothing tells
        raise WorkdirError(f"{missing[0]} is missing: stage 'defend' trains it again")
    settings = settings_of(name, run.settings["defense"]) if variant is None else variant
    defended = DEFENSES[name].load(checkpoints, classifier, settings, run.dataset.image_size)
    # What a fit has come to on its way has no hash here; its checkpoints have checksums of their own.
    on_the_way = variant is not None and hasattr(DEFENSES[name], "check_strength")
    if not on_the_way and hash_arrays(defended.parts()) != outcome["sha256"]:
        if (file := settings.get("mae_checkpoint")) is not None:  # which is read again each time
            remedy = f"put that file back, or delete {record.folder}, and everything is measured with this one"
            raise WorkdirError(f"{file} holds other weights than {section(name)} was made with: {remedy}")
        raise WorkdirError(
            f"the weights in {checkpoints} are not those that were trained: delete {record.folder} to train again"
        )
    return defended


def hashes_of(run: Run) -> dict[str, str | None]:
    """Returns the SHA-256 of attack, where one is known, victim and defenses, of stages that are done.

    And of the data set, where its name does not say which images it has.
    """
    outcome = run.victim.require("victim")
    hashes = {name: outcome[f"{name}_sha256"] for name in ("attack", "victim")}
    if run.dataset.sha256 is not None:
        hashes["dataset"] = run.dataset.sha256
    return hashes | {name: record.require("defend")["sha256"] for name, record in run.defenses.items()}


def is_done(record: Record) -> bool:
    """Returns whether a stage has come to its end, and its last checkpoints are there.

    One that turned out to be damaged is deleted by the user; the training then goes on from the one before.
    """
    return record.outcome is not None and not _missing(record)


def _missing(record: Record) -> list[pathlib.Path]:
    """Returns the last checkpoints that a stage is noted to have left, of each of its trainings, and that are gone."""
    outcome, folder = record.outcome or {}, checkpoints_of(record)
    last = [folder / part / str(step) for part, step in outcome.get("parts", {}).items()]
    if outcome.get("steps") is not None:
        last.append(folder / str(outcome["steps"]))
    return [checkpoint for checkpoint in last if not checkpoint.exists()]  # the first versions have noted less


def checkpoints_of(record: Record) -> pathlib.Path:
    """Where the checkpoints of a stage lie."""
    return record.folder / "checkpoints"
