"""The table at the end of a run: no defense beside every defense, each figure with its interval."""

from collections.abc import Mapping
from typing import Any

FIGURES = {"ba": "BA", "asr": "ASR", "mapped_asr": "mapped ASR", "ra": "RA", "der": "DER"}


def text_table(results: Mapping[str, Any]) -> str:
    """Returns the figures of a results.json as lines of text, in percent.

    Args:
        results: As the file holds it.
    """
    columns = {"no defense": results["no_defense"], **results["defenses"]}
    rows = [["", *columns]]
    shown = dict(FIGURES)
    if any("agreement" in figures for figures in columns.values()):
        shown = {"agreement": "agreement", **shown}
    for name, title in shown.items():
        rows.append([title, *(_cell(figures, name) for figures in columns.values())])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    rule = "-" * max(map(len, lines))
    legend = [
        "in percent, with 95 % intervals; DER from 0 to 100",
        "BA: clean images answered rightly    ASR: triggered ones answered with the target",
        "mapped ASR: with the class that the mapping sends the target to    RA: answered rightly all the same",
    ]
    if "agreement" in shown:
        legend.append("agreement: clean images answered as without the defense; their classes are not known")
    warnings = [f"WARNING: {warning}" for warning in results.get("warnings", ())]
    return "\n".join([lines[0], rule, *lines[1:], rule, *legend, *warnings])


def _cell(figures: Mapping[str, Any], name: str) -> str:
    value = figures.get(name)
    if value is None:
        return "-"
    low, high = figures["ci95"][name]
    return f"{100 * value:6.2f}  [{100 * low:.2f}, {100 * high:.2f}]"
