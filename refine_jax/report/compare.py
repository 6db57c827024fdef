"""Many runs beside each other: a row for each classifier of each, on one page and in tables."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from refine_jax.errors import WorkdirError
from refine_jax.files import read_json, read_record
from refine_jax.report import page, table_files
from refine_jax.workdir import Workdir

# What a row is known by, name to title; some of them can be filtered by, and some are columns even if all rows agree.
KEYS = {
    "run": "run",
    "dataset": "data set",
    "network": "network",
    "attack": "attack",
    "target": "target",
    "seed": "seed",
    "defense": "defense",
}
FILTERS = ("dataset", "network", "attack", "defense")
ALWAYS = ("run", "defense")


def find(directories: Sequence[pathlib.Path]) -> list[pathlib.Path]:
    """Returns the working directories that are measured: those given, and those in folders that are none.

    Args:
        directories: Working directories, folders of them, or working directories of sweeps, which have them in runs/.

    Raises:
        WorkdirError: In one of them there is none.
    """
    found: list[pathlib.Path] = []
    for directory in directories:
        there = [directory] if Workdir(directory).results.is_file() else []
        for pattern in ("*/results.json", "runs/*/results.json"):
            there = there or sorted(path.parent for path in directory.glob(pattern))
        if not there:
            raise WorkdirError(f"{directory} is no working directory with a results.json, nor are there any in it")
        found += [path for path in there if path not in found]
    return found


def read(directories: Sequence[pathlib.Path]) -> list[dict[str, Any]]:
    """Reads the figures of runs.

    Args:
        directories: From `find`.

    Returns:
        A dict for each classifier of each run: the names of `KEYS`, 'figures' as results.json has them, 'warnings'
        but for those of other defenses, and 'folder'.

    Raises:
        WorkdirError: A results.json is damaged.
    """
    rows = []
    names = _short(directories)
    for directory in directories:
        results = _read_results(Workdir(directory).results)
        settings = results["settings"]
        known = {
            "run": names[directory],
            "dataset": settings["dataset"]["name"],
            "network": settings["victim"]["name"],
            "attack": _attack(results),
            "target": results["attack"].get("target"),
            "seed": settings["seed"],
        }
        for defense, figures in table_files.classifiers_of(results).items():
            row = {**known, "defense": defense, "figures": figures, "folder": directory}
            rows.append({**row, "warnings": table_files.doubts_of(results, defense)})
    return rows


def _attack(results: Mapping[str, Any]) -> str:
    """What an attack is called beside others: also what its attacker knows of the defense, if anything."""
    knowledge = results["settings"]["victim"].get("adaptive", {}).get("knowledge")
    return results["attack"]["name"] + (f", adaptive ({knowledge})" if knowledge else "")


def _read_results(path: pathlib.Path) -> dict[str, Any]:
    """Reads a results.json, also one of the first versions, which have no checksum."""
    there = read_json(path)
    results = read_record(path, there if isinstance(there, dict) else ())
    missing = [name for name in ("settings", "attack", "no_defense", "defenses") if name not in results]
    if missing:
        raise WorkdirError(f"{path} is damaged, or not of a run: it has no {missing[0]!r}")
    return results


def _short(directories: Sequence[pathlib.Path]) -> dict[pathlib.Path, str]:
    """Names for folders: without what all have at their beginning."""
    absolute = {path: path.absolute() for path in directories}
    parents = [path.parent for path in absolute.values()]
    common = os.path.commonpath(parents)
    return {path: str(whole.relative_to(common)) for path, whole in absolute.items()}


def write(rows: Sequence[Mapping[str, Any]], folder: pathlib.Path, place: pathlib.Path) -> None:
    """Writes index.html, table.md, table.csv and table.tex.

    Args:
        rows: From `read`.
        folder: To write them into.
        place: Where that folder will be in the end, for links to the runs' own reports.
    """
    columns = table_files.columns_of([row["figures"] for row in rows])
    keys, common = _split_keys(rows)
    header = [*keys.values(), *columns.values()]
    cells = [
        [*(_shown(row[key]) for key in keys), *(table_files.percent(row["figures"], name) for name in columns)]
        for row in rows
    ]
    notes = [table_files.note(header), "Of one run each.", common]
    joined = " ".join(filter(None, notes))
    doubts = dict.fromkeys(f"of {row['run']}, {warning}" for row in rows for warning in row["warnings"])
    (folder / "table.md").write_text(table_files.markdown(header, cells, joined, doubts))
    (folder / "table.tex").write_text(table_files.latex(header, cells, len(keys), joined, doubts))
    csv_rows = [{**{key: row[key] for key in KEYS}, **table_files.cells(row["figures"])} for row in rows]
    (folder / "table.csv").write_text(table_files.write_csv(csv_rows, [row["warnings"] for row in rows]))
    (folder / "index.html").write_text(render(rows, place))


def render(rows: Sequence[Mapping[str, Any]], place: pathlib.Path) -> str:
    """Returns the page; see `write`."""
    from markupsafe import Markup

    columns = table_files.columns_of([row["figures"] for row in rows])
    keys, common = _split_keys(rows)
    given = {
        "css": Markup(page.resource("page.css")),
        "script": Markup(page.resource("compare.js")),
        "runs": len({row["run"] for row in rows}),
        "keys": [*keys.items()],
        "common": common,
        "columns": [*columns.items()],
        "filters": [(key, keys[key], sorted({_shown(row[key]) for row in rows})) for key in FILTERS if key in keys],
        "legend": page.LEGEND,
        "rows": [
            {
                "keys": {key: _shown(row[key]) for key in keys},
                "link": _link(row["folder"], place),
                "cells": [page.cell(row["figures"], name) for name in columns],
                "warnings": row["warnings"],
            }
            for row in rows
        ],
    }
    return page.template("compare.html").render(given)


def _split_keys(rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, str], str]:
    """Returns the names of `KEYS` that are columns, name to title, and a sentence with what the other ones are."""
    alike = [key for key in KEYS if key not in ALWAYS and len({row[key] for row in rows}) == 1]
    known = [f"{KEYS[key]} {rows[0][key]}" for key in alike if rows[0][key] is not None]
    columns = {key: title for key, title in KEYS.items() if key not in alike}
    return columns, f"All: {', '.join(known)}." if known else ""


def _link(run: pathlib.Path, place: pathlib.Path) -> str | None:
    report = Workdir(run).report / "index.html"
    return pathlib.Path(os.path.relpath(report, place)).as_posix() if report.is_file() else None


def _shown(value: Any) -> str:
    return "-" if value is None else str(value)
