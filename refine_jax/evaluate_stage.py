"""Measures the victim of a run, alone and behind each defense, on the whole test set."""

import dataclasses
import logging
import pathlib
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from refine_jax import answers, asking, doubts, environment, evaluation, transport
from refine_jax import triggered as triggered_lib
from refine_jax.attacks import kept
from refine_jax.attacks.trigger import Attack
from refine_jax.defenses.registry import DEFENSES, SWEEP, identifying, same, settings_of, variants
from refine_jax.errors import WorkdirError
from refine_jax.files import read_record, write_record
from refine_jax.opening import Run
from refine_jax.outcomes import hashes_of, load_defense, load_victim
from refine_jax.triggered import Triggered
from refine_jax.workdir import SCHEMA

logger = logging.getLogger(__name__)

Predict = Callable[[jax.Array], jax.Array]

NO_DEFENSE = "no_defense"
COSTS = ("train_seconds", "train_images_per_second", "parameters")
BENIGN = ("ba", "counts", "ci95")
# What is told of a defense at another strength.
SWEPT = ("ba", "asr", "asr_all", "mapped_asr", "ra", "agreement", "der", "w1", "w1_images", "counts", "ci95")
# Of a batch that is timed: how often at most, and how long altogether before it is enough.
_TIMED_CALLS, _TIMED_SECONDS = 5, 3.0


def evaluate(run: Run) -> dict[str, Any]:
    """Measures the victim alone and behind each defense, on the whole test set, and writes results.json.

    What is measured is kept for each defense, and for each of its strengths, by itself, so that a defense that is
    added, or an evaluation that is cut short, does not cost the others' figures; of one that takes long, what was
    answered is kept once a minute.
    """
    attack, classifier = load_victim(run)
    defended = {name: load_defense(run, name, classifier) for name in run.defenses}
    if (results := find_results(run)) is not None:
        logger.info("evaluate: done before, in %s", run.work.results)
        say_doubts(results)
        return results

    test = run.dataset.test
    images, labels = test.images, triggered_lib.known_labels(test)
    shown = shown_images(run, attack)
    logger.info("evaluate: %d test images, clean%s", len(images), "" if shown is None else " and triggered")
    alone = asking.compiled(classifier)

    def measure(
        name: str,
        predict: Predict,
        permutation: np.ndarray | None = None,
        variant: tuple[str, Mapping[str, Any]] | None = None,
    ) -> dict[str, Any]:
        identity, label, said = identity_of(run, name), None, name.replace("_", " ")
        if variant is not None:
            label, identity["settings"] = variant
            said = f"{said}, {label}"
        path, unfinished = run.work.figures(name, label), run.work.unfinished(name, label)
        if (figures := _kept(path, identity)) is not None:
            logger.info("evaluate: %s was measured before", said)
            return figures
        logger.info("evaluate: %s", said)
        if variant is None:
            given = ask(run, name, predict, images, shown)
        else:
            given = _ask_slowly(predict, images, shown, unfinished, identity, said)
        target, classes = (0, None) if shown is None else (shown.target, shown.labels)
        figures = evaluation.count(given, labels, target, permutation, classes)
        figures["w1"], figures["w1_images"] = evaluation.output_distance(given, logits=name == NO_DEFENSE)
        if labels is None and name in run.defenses:
            share = evaluation.agreement(ask(run, NO_DEFENSE, alone, images, shown), given)
            figures["agreement"], figures["counts"]["agreement"], figures["ci95"]["agreement"] = share
        if variant is None:
            figures["milliseconds_per_image"] = milliseconds_per_image(predict, images)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_record(path, {"identity": identity, "figures": figures})
        unfinished.unlink(missing_ok=True)
        return figures

    no_defense = measure(NO_DEFENSE, alone)

    def measure_defense(
        name: str, behind: Any, variant: tuple[str, Mapping[str, Any]] | None = None
    ) -> dict[str, Any]:
        permutation = None if behind.permutation is None else np.asarray(behind.permutation)
        figures = measure(name, asking.compiled(behind), permutation, variant)
        der, interval = evaluation.defense_effectiveness(no_defense, figures)
        return {**figures, "der": der, "ci95": {**figures["ci95"], "der": interval}}

    defenses = {}
    for name, behind in defended.items():
        figures, outcome = measure_defense(name, behind), run.defenses[name].require("defend")
        known = {"needs": dataclasses.asdict(DEFENSES[name].NEEDS), "findings": outcome.get("findings", {})}
        defenses[name] = {**figures, **costs(outcome), **known}
        if SWEEP not in DEFENSES[name].DEFAULTS:
            continue
        chosen = settings_of(name, run.settings["defense"])
        swept = defenses[name][SWEEP] = []
        for label, own in _variants(run, name).items():
            if own != chosen:
                figures = measure_defense(name, load_defense(run, name, classifier, own), (label, own))
            else:
                figures = defenses[name]
            told = {field: figures[field] for field in SWEPT if field in figures}
            swept.append({"settings": own, "chosen": own == chosen, **told})
    outcome = run.victim.require("victim")
    imported = outcome.get("imported")
    results = {
        "schema": SCHEMA,
        "settings": run.settings,
        "environment": environment.describe(),
        "hashes": hashes_of(run),
        "attack": describe_attack(run),
        "victim": {**costs(outcome), "imported": imported},
        "no_defense": no_defense,
        "defenses": defenses,
        "warnings": [*(imported or {}).get("warnings", ()), *doubts.find(no_defense, defenses, labels)],
    }
    write_record(run.work.results, results)
    say_doubts(results)
    return results


def shown_images(run: Run, attack: Attack | None) -> Triggered | None:
    """Returns the triggered images of a run, None where no trigger is known.

    Args:
        run: Whose test images they are made of, unless they were given.
        attack: That was planted in this run or the one that its victim is from.
    """
    return run.triggered if attack is None else triggered_lib.of_attack(attack, run.dataset.test)


def identity_of(run: Run, name: str) -> dict[str, Any]:
    """Returns what answers and figures depend on, as JSON values.

    Args:
        run: Whose victim and defenses are done.
        name: Of a defense, or `NO_DEFENSE`.
    """
    hashes = hashes_of(run)
    identity: dict[str, Any] = {
        "attack": hashes["attack"],
        "victim": hashes["victim"],
        "defense": hashes.get(name),
    }
    if "dataset" in hashes:
        identity["dataset"] = hashes["dataset"]
    if name in run.defenses:  # not all that a defense does has to show in what it has learned
        identity["settings"] = identifying(name, run.settings["defense"])
    return identity


def ask(run: Run, name: str, predict: Predict, images: np.ndarray, shown: Triggered | None) -> asking.Answers:
    """Returns the class of every test image, clean and triggered, asking for it where it was not kept.

    Args:
        run: In whose working directory answers are kept.
        name: Of a defense, or `NO_DEFENSE`.
        predict: As in `evaluation.measure`.
        images: Clean test images. uint8 [N, H, W, 3]
        shown: Triggered ones, where they are known.
    """
    path, identity = run.work.answers(name), identity_of(run, name)
    unfinished = run.work.unfinished(name)
    if (kept_before := answers.load(path, identity)) is not None:
        unfinished.unlink(missing_ok=True)  # of a run that was killed before it was deleted
        return kept_before
    given = _ask_slowly(predict, images, shown, unfinished, identity, name.replace("_", " "))
    answers.save(path, given, identity)
    unfinished.unlink(missing_ok=True)
    return given


def _ask_slowly(
    predict: Predict,
    images: np.ndarray,
    shown: Triggered | None,
    unfinished: pathlib.Path,
    identity: Mapping[str, Any],
    said: str,
) -> asking.Answers:
    """Asks for every answer, or what is left of them; the file stays until what comes of them is kept."""
    triggered = None if shown is None else shown.images
    counts = {"clean": len(images), "triggered": 0 if triggered is None else len(triggered)}
    so_far = answers.Unfinished(unfinished, identity, said, counts)
    return asking.answer(predict, images, triggered, transport.SAMPLE, so_far)


def milliseconds_per_image(predict: Predict, images: np.ndarray) -> float:
    """Returns how long an image takes in a batch as evaluations have them, compilation left out.

    Args:
        predict: As in `evaluation.measure`.
        images: uint8 [N, H, W, 3]
    """
    batch = np.asarray(images[: asking.BATCH_SIZE])
    asking.predict_classes(predict, batch)
    seconds: list[float] = []
    while len(seconds) < _TIMED_CALLS and sum(seconds) < _TIMED_SECONDS:
        started = time.perf_counter()
        asking.predict_classes(predict, batch)
        seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds) / len(batch)


def _kept(path: pathlib.Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the figures that were measured of just this, None where there are none."""
    if not path.exists():
        return None
    try:
        record = read_record(path, ("identity", "figures"))
    except WorkdirError:
        logger.warning("%s is damaged: measured anew", path)
        return None
    return record["figures"] if record["identity"] == identity else None


def say_doubts(results: Mapping[str, Any]) -> None:
    """Says in the log what makes the figures doubtful; the first versions of results.json say nothing of it."""
    for doubt in results.get("warnings", ()):
        logger.warning("WARNING: %s", doubt)


def find_results(run: Run) -> dict[str, Any] | None:
    """Returns what results.json holds, None where it is not there or of others than these victim and defenses.

    Figures at other strengths than are asked for are others, too. Of a defense that learns nothing the hash says
    nothing of its settings.
    """
    if not run.work.results.exists():
        return None
    try:
        results = read_record(run.work.results, ())  # without a checksum it is of the first versions
    except WorkdirError:
        logger.warning("%s is damaged, or of an older version: everything is measured anew", run.work.results)
        return None
    swept = {name: [entry["settings"] for entry in of.get(SWEEP, ())] for name, of in results["defenses"].items()}
    wanted = {name: [*_variants(run, name).values()] for name in run.defenses}
    kept, own = results["settings"]["defense"], run.settings["defense"]
    found = results["hashes"] == hashes_of(run) and swept == wanted
    return results if found and all(same(name, kept, own) for name in run.defenses) else None


def _variants(run: Run, name: str) -> dict[str, dict[str, Any]]:
    """At which strengths a defense is measured."""
    return variants(name, run.settings["defense"], run.dataset.image_size)


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


def costs(outcome: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a stage's training cost, from what its record says."""
    return {name: outcome[name] for name in COSTS}
