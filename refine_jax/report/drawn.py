"""Which figures a report has, in which order, and what is said to who cannot see them."""

import dataclasses
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from refine_jax.report import counts, figures, strengths
from refine_jax.report.figures import caption as caption
from refine_jax.report.material import Material, Shown
from refine_jax.report.tables import FIGURES

# What is drawn over the strength of a defense.
_OVER_STRENGTHS = ("ba", "asr", "ra")


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A figure of the page.

    Attributes:
        kind: Which section it belongs to: 'strengths', 'curves', 'classes', 'confusion', 'flow' or
            'features'.
        title: Stands above it.
        svg: To stand in the page.
    """

    kind: str
    title: str
    svg: str


def draw(material: Material, folder: pathlib.Path) -> dict[str, Drawn]:
    """Draws the figures of a report, and writes each as PNG and SVG.

    Args:
        material: From `material.gather`.
        folder: To write them into.

    Returns:
        The figures of the page by name, which is also that of their files.
    """
    found = {}
    for name, kind, title, alt, figure in _all(material):
        found[name] = Drawn(kind, title, figures.inline(figures.save(figure, folder, name), name, alt))
    if material.examples:
        figures.save(figures.draw_gallery(material.examples, material.images.class_names), folder, "gallery")
    return found


def _all(material: Material) -> Iterator[tuple[str, str, str, str, Any]]:
    """Yields (name, kind, title, text for who cannot see it, figure)."""
    names = material.images.class_names
    for name, (field, entries) in strengths.varied(material.results).items():
        if found := strengths.curves(entries, _OVER_STRENGTHS):
            yield f"strengths_{name}", "strengths", name, *_strengths(material, field, entries, found)
    for stage, curves in material.curves.items():
        if "loss" in curves:
            alt = f"Curves over {curves['step'][-1]:.0f} steps: {_course(curves)}"
            yield f"curves_{_file(stage)}", "curves", f"The training of {stage}", alt, figures.draw_curves(curves)
    confusions = {each.name: each.confusion for each in material.classifiers if each.confusion is not None}
    if confusions:
        accuracies = {name: counts.class_accuracies(confused) for name, confused in confusions.items()}
        alt = "Dots with intervals, a row for each class; the table below has the same numbers"
        yield "classes", "classes", "", alt, figures.draw_classes(accuracies, names)
    for each in material.classifiers:
        file = _file(each.name)
        if each.confusion is not None:
            title = f"Confusion on clean images, {each.name}"
            errors = counts.largest_confusions(each.confusion, 1)
            worst = f"; most often {names[errors[0][0]]} is taken for {names[errors[0][1]]}" if errors else ""
            alt = f"Matrix of true classes and answers, {each.name}{worst}"
            yield f"confusion_{file}", "confusion", title, alt, figures.draw_confusion(each.confusion, names)
        if each.destinations is not None:
            yield f"flow_{file}", "flow", each.name, *_flow(material, each, each.destinations)
        if each.projection is not None:
            title = f"{each.name}: features of x" if each.name == "no defense" else f"{each.name}: features of T(x)"
            alt = "Benign images as dots in groups by class, triggered ones as crosses"
            drawn = figures.draw_features(each.projection, material.benign_places, names)
            yield f"features_{file}", "features", title, alt, drawn


def _file(name: str) -> str:
    """A name as it can stand in that of a file and in an id of the page."""
    return re.sub(r"\W+", "_", name)


def _strengths(material: Material, field: str, entries: Any, found: Any) -> tuple[str, Any]:
    values = [entry["settings"][field] for entry in entries]
    chosen = next((place for place, entry in enumerate(entries) if entry["chosen"]), None)
    no_defense = material.results["no_defense"]
    before = {FIGURES[name]: 100 * no_defense[name] for name in found if no_defense.get(name) is not None}
    titled = {FIGURES[name]: points for name, points in found.items()}
    told = ", ".join(f"{title} {points[0][0]:.1f} to {points[-1][0]:.1f} %" for title, points in titled.items())
    alt = f"Lines over {field} from {values[0]} to {values[-1]}: {told}"
    return alt, figures.draw_strengths(field, values, titled, before, chosen)


def _flow(material: Material, each: Shown, flow: np.ndarray) -> tuple[str, Any]:
    names, target = material.images.class_names, material.images.target
    said = {name: name for name in counts.DESTINATIONS}
    if target is not None:
        said[counts.TARGET] = f"target, {names[target]}"
    if each.mapped_target is not None:
        said[counts.MAPPED] = f"pi(target), {names[each.mapped_target]}"
    told = ", ".join(f"{count} to {said[name]}" for name, count in zip(said, flow.sum(axis=0), strict=True) if count)
    return f"Flow of triggered images, {each.name}: {told}", figures.draw_flow(flow, names, said)


def _course(curves: Any) -> str:
    names = [name for name in ("loss", "accuracy", "agreement") if name in curves]
    return ", ".join(f"{name} from {curves[name][0]:.3g} to {curves[name][-1]:.3g}" for name in names)
