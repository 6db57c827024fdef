"""The table at the end of a run: no defense beside every defense, each figure with its interval."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

FIGURES = {"ba": "BA", "asr": "ASR", "mapped_asr": "mapped ASR", "ra": "RA", "der": "DER"}
# A distance between distributions, from 0 to sqrt(2): no share, and without an interval.
DISTANCE = {"w1": "W1"}
NEEDS = {"gradients": "gradients", "labels": "labels", "clean_images": "clean images"}
# Defenses that stand side by side.
_ABREAST = 3


def text_table(results: Mapping[str, Any]) -> str:
    """Returns the figures of a results.json as lines of text, in percent.

    Args:
        results: As the file holds it.
    """
    columns = {"no defense": results["no_defense"], **results["defenses"]}
    shown = dict(FIGURES)
    if any("agreement" in figures for figures in columns.values()):
        shown = {"agreement": "agreement", **shown}
    names = list(columns)
    first, rest = names[: 1 + _ABREAST], names[1 + _ABREAST :]
    blocks = [first, *(rest[start : start + _ABREAST] for start in range(0, len(rest), _ABREAST))]
    tables = [_align([["", *block], *_rows({name: columns[name] for name in block}, shown)]) for block in blocks]
    rule = "-" * max(len(line) for lines in tables for line in lines)
    body = [line for lines in tables for line in (lines[0], rule, *lines[1:], rule)]
    if strengths := [*_strengths(results["defenses"], shown)]:
        body += [*_align(strengths), rule]
    legend = [
        "in percent, with 95 % intervals; DER from 0 to 100",
        "BA: clean images answered rightly    ASR: triggered ones answered with the target",
        "mapped ASR: with the class that the mapping sends the target to    RA: answered rightly all the same",
    ]
    measured = [figures["w1_images"] for figures in columns.values() if figures.get("w1") is not None]
    if measured:
        legend.append(
            f"W1: distance from outputs on clean images to those on triggered ones, 0 to 1.414; {measured[0]} each"
        )
    if any("needs" in figures for figures in columns.values()):
        legend.append("training: what fitting took    per image: an answer in a batch, the classifier's work too")
    if strengths:
        legend.append("strengths: the same otherwise set; * as above, set beforehand and not chosen by these figures")
    if "agreement" in shown:
        legend.append("agreement: clean images answered as without the defense; their classes are not known")
    legend += [
        f"found by {name}: {_found(figures['findings'])}"
        for name, figures in columns.items()
        if figures.get("findings")
    ]
    warnings = [f"WARNING: {warning}" for warning in results.get("warnings", ())]
    return "\n".join([*body, *legend, *warnings])


def _rows(columns: Mapping[str, Mapping[str, Any]], shown: Mapping[str, str]) -> Iterator[list[str]]:
    """Yields the figures of some columns, and what each defense needs and costs."""
    for name, title in shown.items():
        yield [title, *(_cell(figures, name) for figures in columns.values())]
    for name, title in DISTANCE.items():
        if any(figures.get(name) is not None for figures in columns.values()):
            yield [title, *(_amount(figures, name, "{:6.3f}") for figures in columns.values())]
    if any("needs" in figures for figures in columns.values()):
        yield ["needs", *(_needs(figures) for figures in columns.values())]
        yield ["training", *(_amount(figures, "train_seconds", "{:.0f} s") for figures in columns.values())]
        yield ["per image", *(_amount(figures, "milliseconds_per_image", "{:.3g} ms") for figures in columns.values())]


def _strengths(defenses: Mapping[str, Mapping[str, Any]], shown: Mapping[str, str]) -> Iterator[list[str]]:
    """Yields what the strength of defenses does, a line each; nothing where none was varied."""
    varied = {name: varying(figures.get("sweep", ())) for name, figures in defenses.items()}
    entries = [(name, entry) for name, fields in varied.items() if fields for entry in defenses[name]["sweep"]]
    there = [name for name in shown if any(entry.get(name) is not None for _, entry in entries)]
    if entries:
        yield ["strengths", "", *(f"{shown[name]:>6}" for name in there)]
    for name, entry in entries:
        setting = ", ".join(f"{field} {entry['settings'][field]}" for field in varied[name])
        values = (entry.get(figure) for figure in there)
        cells = ("     -" if value is None else f"{100 * value:6.2f}" for value in values)
        yield [name, setting + (" *" if entry["chosen"] else ""), *cells]


def varying(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the settings that are not the same at all strengths of a defense; none where it has one strength alone.

    Args:
        entries: The list 'sweep' of a defense, in results.json.
    """
    first = entries[0]["settings"] if entries else {}
    return [field for field in first if any(entry["settings"][field] != first[field] for entry in entries)]


def _align(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _needs(figures: Mapping[str, Any]) -> str:
    if "needs" not in figures:
        return "-"
    return ", ".join(title for name, title in NEEDS.items() if figures["needs"][name]) or "nothing"


def _found(findings: Mapping[str, Any]) -> str:
    """Says what a defense has found out about the victim."""
    told = (f"{value:.4g}" if isinstance(value, float) else str(value) for value in findings.values())
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in zip(findings, told, strict=True))


def _amount(figures: Mapping[str, Any], name: str, form: str) -> str:
    return "-" if figures.get(name) is None else form.format(figures[name])


def _cell(figures: Mapping[str, Any], name: str) -> str:
    value = figures.get(name)
    if value is None:
        return "-"
    low, high = figures["ci95"][name]
    return f"{100 * value:6.2f}  [{100 * low:.2f}, {100 * high:.2f}]"
