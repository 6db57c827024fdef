"""Writes report/ of a run: one page, and its figures and tables as files."""

import logging
from typing import Any

import numpy as np

from refine_jax import artifacts, asking
from refine_jax.errors import WorkdirError
from refine_jax.evaluate_stage import NO_DEFENSE, ask, find_results, shown_images
from refine_jax.files import hash_json
from refine_jax.opening import Run
from refine_jax.outcomes import load_defense, load_victim
from refine_jax.planting import SHEET
from refine_jax.report import curves, material, page
from refine_jax.settings import NO_ATTACK
from refine_jax.triggered import known_labels
from refine_jax.workdir import Workdir

logger = logging.getLogger(__name__)

SCHEMA = 1


def write(run: Run) -> None:
    """Writes the report of a run that is measured, unless there is one of the same results.

    The answers to the test images are those that evaluation has kept; where it has not, they are asked for.

    Raises:
        WorkdirError: There are no results of these victim and defenses, or report/ is not of this program.
    """
    results = find_results(run)
    if results is None:
        raise WorkdirError(f"{run.work.results} holds no figures of this run: stage 'evaluate' does that")
    made_from = {"results_sha256": hash_json(results)}
    if artifacts.holds(run.work.report, SCHEMA, made_from):
        logger.info("report: done before, in %s", run.work.report / "index.html")
        return
    gathered = gather(run, results)
    with artifacts.writing(run.work.report, {"schema": SCHEMA, **made_from}) as folder:
        page.write(gathered, folder)
    logger.info("report: %s", run.work.report / "index.html")


def gather(run: Run, results: dict[str, Any]) -> material.Material:
    """Returns what the report of a run is made of.

    Args:
        run: Whose victim and defenses are done.
        results: As results.json holds it.
    """
    attack, classifier = load_victim(run)
    defended = {name: load_defense(run, name, classifier) for name in run.defenses}
    dataset, shown = run.dataset, shown_images(run, attack)
    answers = {}
    for name, behind in {NO_DEFENSE: classifier, **defended}.items():
        title = material.NO_DEFENSE if name == NO_DEFENSE else name
        answers[title] = ask(run, name, asking.compiled(behind), dataset.test.images, shown)
    images = material.Images(
        clean=dataset.test.images,
        labels=known_labels(dataset.test),
        triggered=None if shown is None else shown.images,
        triggered_labels=None if shown is None else shown.labels,
        aligned=run.settings["attack"]["name"] != NO_ATTACK,
        target=None if shown is None else shown.target,
        class_names=dataset.class_names or [*map(str, range(classifier.num_classes))],
    )
    sheet = run.attack_folder / SHEET
    contact_sheet = sheet.read_bytes() if run.imported is None and sheet.exists() else None
    return material.gather(results, images, classifier, defended, answers, _read_curves(run), contact_sheet)


def _read_curves(run: Run) -> dict[str, dict[str, np.ndarray]]:
    """The trainings of this run, that of a borrowed victim from where it was trained."""
    found = curves.read(run.work.metrics)
    borrowed = run.settings["victim"]["workdir"]
    if borrowed:
        found = curves.read(Workdir(borrowed).metrics, ("benign", "victim")) | found
    return found
