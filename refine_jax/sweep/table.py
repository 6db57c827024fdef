"""The table at the end of a sweep: every figure as a mean over seeds, with an interval, and what defenses cost."""

import csv
import io
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from refine_jax.report import strengths, table_files
from refine_jax.report.table_files import doubts_of
from refine_jax.report.tables import DISTANCE, FIGURES
from refine_jax.sweep.plan import Task

SCHEMA = 1
# The victim alone, beside the figures of each defense.
_BEFORE = {"ba": "BA, no defense", "asr": "ASR, no defense"}
# Where a distance stands, and what its title says of it.
_PARTS = {"no_defense": ", no defense", "figures": ""}
# What figures can be at most; none can be less than 0.
_MOST = {**dict.fromkeys(FIGURES, 1.0), **dict.fromkeys(DISTANCE, math.sqrt(2))}
# Seeds that differ by less do so by rounding alone.
_NO_SPREAD = 1e-12
# Their titles, and how their means are shown: without an interval, since they tell of the machine.
_COSTS = {"train_seconds": ("training, s", "{:,.0f}"), "milliseconds_per_image": ("per image, ms", "{:.3g}")}


def mean_and_interval(
    values: Sequence[float], most: float = math.inf, own: Iterable[Sequence[float] | None] = ()
) -> dict[str, Any]:
    """Returns the mean of a figure over seeds, and an interval of 95 %.

    Args:
        values: One of each seed, none under 0.
        most: What a value can be at most.
        own: The interval of each seed's value over its own test images; None where it has none.

    Returns:
        'mean', 'interval' (low and high, or None) and 'values'. The interval is Student's t of the mean over seeds,
        clipped to 0 and `most`. Where seeds do not differ, or there is one alone, t has nothing to go by, and it is
        the widest of their own: these are of the same test images, so that more seeds make it no narrower.
    """
    from scipy import stats  # costs a second to import

    mean, interval = statistics.fmean(values), None
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    known = [ends for ends in own if ends is not None]
    if spread > _NO_SPREAD:
        half = float(stats.t.ppf(0.975, len(values) - 1)) * spread / math.sqrt(len(values))
        interval = [max(0.0, mean - half), min(most, mean + half)]
    elif known:
        interval = [min(low for low, _ in known), max(high for _, high in known)]
    return {"mean": mean, "interval": interval, "values": list(values)}


def summarize(runs: Iterable[tuple[Task, Mapping[str, Any] | None]]) -> list[dict[str, Any]]:
    """Returns a row for every combination of values and each defense, over the seeds that there are.

    Args:
        runs: Each with what was measured, see `state.measured`; None where that is nothing.

    Returns:
        Dicts of JSON values: 'values' (of the fields that vary), 'defense' (None where none was measured), 'seeds'
        (those that are done), 'missing' (those that are not), 'doubtful' (those whose results.json has warnings),
        'warnings' (what these say, each once), 'no_defense', 'figures' and 'costs' (name to `mean_and_interval`; None
        where a figure is not known of every seed). A defense that was measured at several strengths has a row of
        each.
    """
    groups: dict[tuple, list[tuple[Task, Mapping[str, Any] | None]]] = {}
    for task, results in runs:
        groups.setdefault(tuple(task.values.items()), []).append((task, results))
    rows = []
    for values, members in groups.items():
        done = {task.seed: results for task, results in members if results is not None}
        names = members[0][0].settings["defense"]["names"] if done else (None,)
        for name in names:
            of = {seed: results for seed, results in done.items() if name in results["defenses"]}
            warnings = {seed: doubts_of(results, name) for seed, results in of.items()}
            general = {
                "values": dict(values),
                "seeds": [*of],
                "missing": [task.seed for task, _ in members if task.seed not in of],
                "doubtful": [seed for seed, found in warnings.items() if found],
                "warnings": list(dict.fromkeys(warning for found in warnings.values() for warning in found)),
                "no_defense": _figures([results["no_defense"] for results in of.values()], (*_BEFORE, *DISTANCE)),
            }
            for label, measured in _by_strength(name, [*of.values()]).items():
                figures, costs = _figures(measured, (*FIGURES, *DISTANCE)), _figures(measured, _COSTS)
                rows.append({**general, "defense": label, "figures": figures, "costs": costs})
    return rows


def _by_strength(name: str | None, done: Sequence[Mapping[str, Any]]) -> dict[str | None, list[Mapping[str, Any]]]:
    """Returns the figures of a defense, one of each run; below them, those at its other strengths."""
    found: dict[str | None, list[Mapping[str, Any]]] = {name: [results["defenses"][name] for results in done]}
    field, entries = strengths.varied(done[0]).get(str(name), ("", [])) if done else ("", [])
    for place, entry in enumerate(entries):
        if not entry["chosen"]:
            label = f"{name}, {field} {entry['settings'][field]}"
            found[label] = [results["defenses"][name]["sweep"][place] for results in done]
    return found


def _figures(measured: Sequence[Mapping[str, Any]], names: Iterable[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in names:
        values = [figures[name] for figures in measured if figures.get(name) is not None]
        own = [figures.get("ci95", {}).get(name) for figures in measured]
        most = _MOST.get(name, math.inf)
        found[name] = mean_and_interval(values, most, own) if len(values) == len(measured) > 0 else None
    return found


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the rows of `summarize` as a table, in percent."""
    fields = list(rows[0]["values"])
    header = [*fields, "defense", "seeds", *_BEFORE.values(), *FIGURES.values()]
    distances = [(part, name) for name in DISTANCE for part in _PARTS if any(row[part][name] for row in rows)]
    header += [DISTANCE[name] + _PARTS[part] for part, name in distances]
    header += [title for title, _ in _COSTS.values()]
    lines = [
        [
            *(_shown(row["values"][field]) for field in fields),
            row["defense"] or "-",
            str(len(row["seeds"])) + (f" of {len(row['seeds']) + len(row['missing'])}" if row["missing"] else ""),
            *(_with_interval(row["no_defense"][name], 100, "{:.2f}") for name in _BEFORE),
            *(_with_interval(row["figures"][name], 100, "{:.2f}") for name in FIGURES),
            *(_with_interval(row[part][name], 1, "{:.3f}") for part, name in distances),
            *(_amount(row["costs"][name], form) for name, (_, form) in _COSTS.items()),
        ]
        for row in rows
    ]
    legend = (
        "In percent, DER from 0 to 100, W1 from 0 to 1.414. Of several seeds: means, with the 95 % t interval of the "
        "mean over runs, clipped to what the figure can be. Of one, or where runs do not differ: the figure, with a "
        "95 % interval that tells of the number of test images alone."
    )
    doubts = dict.fromkeys(_doubt(row) for row in rows if row["doubtful"])
    return table_files.markdown(header, lines, legend, doubts)


def _doubt(row: Mapping[str, Any]) -> str:
    """Says that figures of a row are doubtful, and why."""
    of = ", ".join(f"{field}={_shown(value)}" for field, value in row["values"].items()) or "these runs"
    return f"of {of}, {len(row['doubtful'])} of {len(row['seeds'])} runs are doubtful: {'; '.join(row['warnings'])}"


def comma_separated(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the rows of `summarize` as CSV, shares from 0 to 1."""
    fields = list(rows[0]["values"])
    columns = [("no_defense", name) for name in _BEFORE]
    columns += [("figures", name) for name in FIGURES] + [(part, name) for name in DISTANCE for part in _PARTS]
    columns += [("costs", name) for name in _COSTS]
    names = [f"{name}_no_defense" if part == "no_defense" else name for part, name in columns]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    header = [f"{name}{suffix}" for name in names for suffix in ("", "_low", "_high")]
    writer.writerow([*fields, "defense", "seeds", "missing", "doubtful", *header])
    for row in rows:
        cells: list[Any] = []
        for part, name in columns:
            figure = row[part][name] or {"mean": None, "interval": None}
            cells += [figure["mean"], *(figure["interval"] or (None, None))]
        seeds = [" ".join(map(str, row[name])) for name in ("seeds", "missing", "doubtful")]
        writer.writerow([*(_shown(row["values"][field]) for field in fields), row["defense"], *seeds, *cells])
    return text.getvalue()


def _shown(value: Any) -> str:
    return "-" if value is None else str(value)


def _with_interval(figure: Mapping[str, Any] | None, scale: float, form: str) -> str:
    if figure is None:
        return "-"
    mean, *ends = (form.format(scale * value) for value in (figure["mean"], *(figure["interval"] or ())))
    return f"{mean} [{', '.join(ends)}]" if ends else mean


def _amount(figure: Mapping[str, Any] | None, form: str) -> str:
    return "-" if figure is None else form.format(figure["mean"])
