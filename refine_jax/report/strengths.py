"""What the strength of a defense does to its figures, for the page and its files."""

from collections.abc import Mapping, Sequence
from typing import Any

from refine_jax.report.table_files import cells, columns_of, percent
from refine_jax.report.tables import varying

_COSTS = ("train_seconds", "milliseconds_per_image")  # not measured at each strength


def varied(results: Mapping[str, Any]) -> dict[str, tuple[str, list[Mapping[str, Any]]]]:
    """Returns the defenses that were measured at several strengths.

    Args:
        results: As results.json holds it.

    Returns:
        Name to (the setting that says how strong it is, its entries from the least value to the greatest).
    """
    found = {}
    for name, figures in results["defenses"].items():
        entries = [*figures.get("sweep", ())]
        if fields := varying(entries):
            found[name] = (fields[0], entries)
    return found


def table(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows of every strength; the chosen ones have a star."""
    entries = [(name, field, entry) for name, (field, of) in varied(results).items() for entry in of]
    shown = columns_of([entry for _, _, entry in entries])
    rows = [
        [
            f"{name}, {field} {entry['settings'][field]}" + (" *" if entry["chosen"] else ""),
            *(percent(entry, column) for column in shown),
        ]
        for name, field, entry in entries
    ]
    return ["", *shown.values()], rows


def records(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the rows of a CSV: shares from 0 to 1, with the ends of their intervals, hits and totals."""
    return [
        {"defense": name, "setting": field, "value": entry["settings"][field], "chosen": entry["chosen"]}
        | {column: value for column, value in cells(entry).items() if column not in _COSTS}
        for name, (field, entries) in varied(results).items()
        for entry in entries
    ]


def curves(entries: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, list[tuple[float, float, float]]]:
    """Returns the figures that are known at every strength, as (share, low, high) in percent."""
    return {
        name: [(100 * entry[name], 100 * entry["ci95"][name][0], 100 * entry["ci95"][name][1]) for entry in entries]
        for name in names
        if all(entry.get(name) is not None for entry in entries)
    }
