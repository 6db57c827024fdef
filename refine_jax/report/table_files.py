"""Tables as Markdown, CSV and LaTeX, for papers and pages; tables.py has the one for a terminal."""

import csv
import io
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from refine_jax.report.tables import DISTANCE, FIGURES

# Figures that are no shares, by title.
_RANGES = {"DER": "from 0 to 100", "W1": "from 0 to 1.414"}
# In the fonts that TeX starts with, <, > and | are other signs; -- is a dash.
_ESCAPED = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"},
}


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Returns the figures that are known in one of the rows at least, name to title.

    Args:
        rows: Figures of results.json, of one classifier each.
    """
    shown = {"agreement": "agreement", **FIGURES, **DISTANCE}
    return {name: title for name, title in shown.items() if any(row.get(name) is not None for row in rows)}


def classifiers_of(results: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Returns the figures of a results.json by classifier, the victim alone first."""
    return {"no defense": results["no_defense"], **results["defenses"]}


def doubts_of(results: Mapping[str, Any], classifier: str | None) -> list[str]:
    """Returns the warnings of a results.json but for those that are of another defense than a classifier's."""
    return warnings_without(results, {*results["defenses"]} - {classifier})


def warnings_without(results: Mapping[str, Any], defenses: Collection[str]) -> list[str]:
    """Returns the warnings of a results.json but for those of some defenses."""
    begins = tuple(f"{name}{end}" for name in defenses for end in " :")
    return [text for text in results.get("warnings", ()) if not text.startswith(begins)]


def percent(figures: Mapping[str, Any], name: str, interval: str = "{:.2f} [{:.2f}, {:.2f}]") -> str:
    """Returns a figure with its interval, in percent, a distance as it is; a dash where it is not known."""
    if figures.get(name) is None:
        return "-"
    if name in DISTANCE:
        return f"{figures[name]:.3f}"
    return interval.format(100 * figures[name], *(100 * end for end in figures["ci95"][name]))


def headline(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Returns the header and the rows, one a classifier, of the table of a run."""
    rows = classifiers_of(results)
    shown = columns_of([*rows.values()])
    header = ["", *shown.values()]
    return header, [[name, *(percent(figures, column) for column in shown)] for name, figures in rows.items()]


def note(header: Sequence[str]) -> str:
    """Returns what the numbers of a table with these titles are."""
    ranges = [f"{title} {_RANGES[title]}" for title in header if title in _RANGES]
    return "In percent, with 95 % intervals" + (f"; {', '.join(ranges)}." if ranges else ".")


def markdown(
    header: Sequence[str], rows: Sequence[Sequence[str]], below: str | None = None, doubts: Iterable[str] = ()
) -> str:
    """Returns a table as Markdown, with a sentence below it, that of `note` if none is given, and what is doubtful."""
    lines = [header, ["---"] * len(header), *rows]
    text = "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)
    return f"{text}\n\n{below or note(header)}\n" + "".join(f"\nWARNING: {doubt}\n" for doubt in doubts)


def latex(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    texts: int = 1,
    above: str | None = None,
    doubts: Iterable[str] = (),
) -> str:
    r"""Returns a table as a LaTeX tabular, for \input; it needs the package booktabs.

    Args:
        header: Titles of the columns.
        rows: Cells; of those that `percent` made, the interval becomes small.
        texts: How many columns at the left are texts; the others are set to the right.
        above: A comment above it, that of `note` if none is given.
        doubts: What is doubtful, as comments below that.
    """
    lines = [
        f"% {above or note(header)} Needs \\usepackage{{booktabs}}.",
        *(f"% WARNING: {' '.join(doubt.split())}" for doubt in doubts),
        rf"\begin{{tabular}}{{{texts * 'l'}{(len(header) - texts) * 'r'}}}",
        r"\toprule",
        _latex_line(header),
        r"\midrule",
        *map(_latex_line, rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def _latex_line(cells: Sequence[str]) -> str:
    escaped = [re.sub("-(?=-)", "-{}", "".join(_ESCAPED.get(sign, sign) for sign in cell)) for cell in cells]
    # A line that begins with [ or * would be taken for an option of the \\ before it; intervals never begin one.
    small = [re.sub(r"^(\S+) \[(.*)\]$", r"\1 {\\scriptsize [\2]}", cell) for cell in escaped]
    return " & ".join("{" + cell + "}" if cell.startswith(("[", "*")) else cell for cell in small) + r" \\"


def comma_separated(results: Mapping[str, Any]) -> str:
    """Returns the table of a run as CSV: shares from 0 to 1, with the ends of their intervals, hits and totals."""
    rows = classifiers_of(results)
    doubts = [doubts_of(results, name) for name in rows]
    return write_csv([{"classifier": name, **cells(figures)} for name, figures in rows.items()], doubts)


def cells(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the figures of a classifier as columns of a CSV; empty where they are not known."""
    found: dict[str, Any] = {}
    for name in ("agreement", *FIGURES):
        known = figures.get(name) is not None
        low, high = figures["ci95"][name] if known else (None, None)
        found |= {name: figures.get(name), f"{name}_low": low, f"{name}_high": high}
        if name != "der":
            hits, total = figures["counts"][name] if known else (None, None)
            found |= {f"{name}_hits": hits, f"{name}_images": total}
    rest = (*DISTANCE, "w1_images", "train_seconds", "milliseconds_per_image")
    return found | {name: figures.get(name) for name in rest}


def write_csv(rows: Sequence[Mapping[str, Any]], doubts: Sequence[Sequence[str]] = ()) -> str:
    """Returns rows of the same columns as CSV; with what is doubtful of each, 'warnings', where anything is."""
    if any(doubts):
        rows = [{**row, "warnings": "; ".join(of)} for row, of in zip(rows, doubts, strict=True)]
    text = io.StringIO()
    writer = csv.DictWriter(text, [*rows[0]], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
