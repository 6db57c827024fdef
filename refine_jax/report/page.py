"""report/index.html: one file with everything in it, which needs no network and no script."""

import base64
import functools
import importlib.resources
import io
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from refine_jax.report import counts, drawn, gallery, strengths, summary, table_files
from refine_jax.report.material import Material
from refine_jax.report.tables import DISTANCE

LEGEND = (
    "BA: clean images answered with their class. ASR: triggered images of other classes answered with the target. "
    "Mapped ASR: with pi(target), the class that the output mapping sends the target to, where a trigger that "
    "survived the defense would show. RA: answered with their class all the same. DER: 100 where an attack that "
    "always succeeded is gone and no accuracy with it; 50 where nothing changed. W1: Wasserstein-1 distance from the "
    "outputs on clean images to those on triggered ones, 0 where a trigger changes nothing."
)
_NO_FEATURES = "The victim is a function without a method that gives its features, so that they cannot be shown."


def write(material: Material, folder: pathlib.Path) -> None:
    """Writes the page, its figures and its tables into a folder.

    Args:
        material: From `material.gather`.
        folder: Which is there.
    """
    header, rows = table_files.headline(material.results)
    doubts = material.results.get("warnings", ())
    (folder / "table.md").write_text(table_files.markdown(header, rows, doubts=doubts))
    (folder / "table.tex").write_text(table_files.latex(header, rows, doubts=doubts))
    (folder / "table.csv").write_text(table_files.comma_separated(material.results))
    if varied := strengths.records(material.results):
        (folder / "strengths.csv").write_text(table_files.write_csv(varied))
    figures = drawn.draw(material, folder)
    (folder / "index.html").write_text(render(material, figures))


def render(material: Material, figures: Mapping[str, drawn.Drawn]) -> str:
    """Returns the page.

    Args:
        material: From `material.gather`.
        figures: From `drawn.draw`.
    """
    from markupsafe import Markup

    results, names = material.results, material.images.class_names
    rows = table_files.classifiers_of(results)
    columns = table_files.columns_of([*rows.values()])

    def titles(kind: str) -> list[tuple[str, str]]:
        return [(name, figure.title) for name, figure in figures.items() if figure.kind == kind]

    given = {
        "title": _title(results),
        "css": Markup(resource("page.css")),
        "figures": {name: Markup(figure.svg) for name, figure in figures.items()},
        "summary": summary.sentences(material),
        "warnings": results.get("warnings", ()),
        "columns": [*columns.items()],
        "headline": [(name, [cell(figures, column) for column in columns]) for name, figures in rows.items()],
        "legend": LEGEND,
        "findings": summary.findings(results, names),
        "strengths": titles("strengths"),
        "strength_table": strengths.table(results),
        "attack": summary.attack(results, names),
        "contact_sheet": material.contact_sheet and _png(material.contact_sheet),
        "gallery": [_example(example, names) for example in material.examples],
        "gallery_text": _gallery_text(material),
        "flows": titles("flow"),
        "flow_table": _flow_table(material),
        "target_stays": _target_stays(material),
        "features": titles("features"),
        "features_text": _features_text(material),
        "no_features": _NO_FEATURES,
        "confusions": titles("confusion"),
        "class_table": _class_table(material),
        "error_table": _error_table(material),
        "curves": titles("curves"),
        "cost": summary.costs(results),
        "environment": [(name, value) for name, value in results["environment"].items() if value is not None],
        "hashes": [(name, value or "-") for name, value in results["hashes"].items()],
        "settings": summary.settings(results),
    }
    sections = {
        "result": "Result",
        "attack": "Attack",
        "strengths": "Strengths" if strengths.varied(results) else None,
        "gallery": "Images" if given["gallery"] else None,
        "flow": "Triggered images" if given["flows"] else None,
        "features": "Features",
        "classes": "Classes" if given["confusions"] else None,
        "training": "Trainings" if given["curves"] else None,
        "cost": "Cost",
        "made": "Settings and versions",
    }
    return template("page.html").render(given, sections=[(anchor, name) for anchor, name in sections.items() if name])


@functools.cache
def template(name: str) -> Any:
    """Returns a template that lies beside this file; what it is given is escaped."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(resource(name))


def resource(name: str) -> str:
    """Returns the text of a file that lies beside this one."""
    return (importlib.resources.files("refine_jax.report") / name).read_text()


def _title(results: Mapping[str, Any]) -> str:
    defenses = ", ".join({"refine": "REFINE"}.get(name, name) for name in results["defenses"])
    attack = results["attack"]["name"]
    against = "" if attack == "none" else f" against {attack}"
    return f"{defenses or 'No defense'}{against} on {results['settings']['dataset']['name']}"


def cell(figures: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """Returns what a table's cell shows of a figure; None where it is not known."""
    if figures.get(name) is None:
        return None
    if name in DISTANCE:
        return {"value": f"{figures[name]:.3f}", "low": None, "high": None, "count": None}
    value, low, high = (f"{100 * share:.2f}" for share in (figures[name], *figures["ci95"][name]))
    return {"value": value, "low": low, "high": high, "count": figures["counts"].get(name)}


def _example(example: gallery.Example, names: Any) -> dict[str, Any]:
    cells = {
        title: cell and {"image": _png(_encode(cell.image)), "caption": drawn.caption(cell, names, example.label)}
        for title, cell in example.cells.items()
    }
    label = "not known" if example.label is None else names[example.label]
    failed = [
        f"{name} failed" + (", and on the clean image, too: perhaps an ordinary error" if ordinary else "")
        for name, ordinary in ((name, name in example.ordinary) for name in example.failed)
    ]
    return {"number": example.number, "label": label, "failed": failed, "cells": cells}


def _encode(image: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(image).save(data, "PNG")
    return data.getvalue()


def _png(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def _gallery_text(material: Material) -> str:
    text = f"The first test image of each of {gallery.CLASSES} classes at most, the target's left out."
    if material.images.labels is None:
        text = "The first test images."
    if any(example.failed for example in material.examples):
        text += " Then the first that a defense failed on: answered with the target or pi(target); if there are any, "
        text += "such as it answers rightly without the trigger."
    return text + " T(x) is what the defense makes of an image before the victim is shown it."


def _features_text(material: Material) -> str:
    found = next((shown.projection for shown in material.classifiers if shown.projection), None)
    if found is None:
        return ""
    counted = f"{len(found.benign):,} benign"
    if found.triggered is not None:
        counted += f" and {len(found.triggered):,} triggered"
    return (
        f"The victim's features, before its last layer, of {counted} test images, each picture on two principal "
        "components of its own. A backdoor shows as triggered images that lie apart from the classes they are of."
    )


def _flow_table(material: Material) -> tuple[list[str], list[list[str]]]:
    rows = []
    for each in material.classifiers:
        if each.destinations is None:
            continue
        sums = [int(total) for total in each.destinations.sum(axis=0)]
        total = max(1, sum(sums))
        known = [f"{count} ({100 * count / total:.1f} %)" for count in sums]
        if each.mapped_target is None:
            known[counts.DESTINATIONS.index(counts.MAPPED)] = "-"
        rows.append([each.name, *known])
    return ["", *counts.DESTINATIONS], rows


def _target_stays(material: Material) -> str:
    """Names the defenses behind which there is an output mapping, and none of the target."""
    stays = [each for each in material.classifiers if each.mapped_target is None]
    return ", ".join(each.name for each in stays if each.figures.get("mapped_asr") is not None)


def _class_table(material: Material) -> tuple[list[str], list[list[str]]]:
    shown = {each.name: each.confusion for each in material.classifiers if each.confusion is not None}
    accuracies = [counts.class_accuracies(confusion) for confusion in shown.values()]
    rows = []
    for number, name in enumerate(material.images.class_names):
        found = [known[number] for known in accuracies]
        images = str(found[0]["count"][1] if found and found[0] else 0)
        rows.append([name, images, *(_share(each) for each in found)])
    return ["class", "images", *shown], rows


def _share(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "-"
    low, high = found["ci95"]
    return f"{100 * found['share']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _error_table(material: Material) -> tuple[list[str], list[list[str]]]:
    names, rows = material.images.class_names, []
    for each in material.classifiers:
        if each.confusion is not None:
            for true, answer, count in counts.largest_confusions(each.confusion):
                rows.append([each.name, names[true], names[answer], str(count)])
    return ["classifier", "class", "answered", "images"], rows
