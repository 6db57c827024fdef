"""The table at the end of a sweep: every figure as a mean over seeds, with an interval, and what defenses cost."""

import csv
import io
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from refine_jax.report import strengths
from refine_jax.report.table_files import doubts_of
from refine_jax.report.tables import DISTANCE, FIGURES
from refine_jax.sweep.plan import Task

SCHEMA = 1
# The victim alone, beside the figures of each defense.
_BEFORE = {"ba": "BA, no defense", "asr": "ASR, no defense"}
# Where a distance stands, and what its title says of it.
_PARTS = {"no_defense": ", no defense", "figures": ""}
# Their titles, and how their means are shown: without an interval, since they tell of the machine.
_COSTS = {"train_seconds": ("training, s", "{:,.0f}"), "milliseconds_per_image": ("per image, ms", "{:.3g}")}


def mean_and_interval(values: Sequence[float]) -> dict[str, Any]:
    """Returns the mean of a figure over seeds, and its 95 % interval by Student's t.

    Args:
        values: One of each seed.

    Returns:
        'mean', 'interval' (low and high; None of a single value, which says nothing of others) and 'values'.
    """
    from scipy import stats  # costs a second to import

    mean, interval = statistics.fmean(values), None
    if len(values) > 1:
        half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
        interval = [mean - half, mean + half]
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
        each. Of a single seed the interval is the run's own, over its test images.
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
        found[name] = mean_and_interval(values) if len(values) == len(measured) > 0 else None
        if len(values) == len(measured) == 1:
            found[name]["interval"] = measured[0].get("ci95", {}).get(name)
    return found


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the rows of `summarize` as a table, in percent."""
    fields = list(rows[0]["values"])
    header = [*fields, "defense", "seeds", *_BEFORE.values(), *FIGURES.values()]
    distances = [(part, name) for name in DISTANCE for part in _PARTS if any(row[part][name] for row in rows)]
    header += [DISTANCE[name] + _PARTS[part] for part, name in distances]
    header += [title for title, _ in _COSTS.values()]
    lines = [header, ["---"] * len(header)]
    for row in rows:
        lines.append(
            [
                *(_shown(row["values"][field]) for field in fields),
                row["defense"] or "-",
                str(len(row["seeds"])) + (f" of {len(row['seeds']) + len(row['missing'])}" if row["missing"] else ""),
                *(_percent(row["no_defense"][name]) for name in _BEFORE),
                *(_percent(row["figures"][name]) for name in FIGURES),
                *(_distance(row[part][name]) for part, name in distances),
                *(_amount(row["costs"][name], form) for name, (_, form) in _COSTS.items()),
            ]
        )
    legend = (
        "In percent, DER from 0 to 100, W1 from 0 to 1.414. "
        "Of several seeds: means, with 95 % intervals by Student's t, which tell how "
        "far seeds differ. Of one: its figure, with a 95 % interval that tells of the number of test images alone."
    )
    doubts = dict.fromkeys(f"\nWARNING: {_doubt(row)}\n" for row in rows if row["doubtful"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{legend}\n" + "".join(doubts)


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


def _percent(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return "-"
    mean, interval = 100 * figure["mean"], figure["interval"]
    if interval is None:
        return f"{mean:.2f}"
    low, high = (100 * end for end in interval)
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]" if len(figure["values"]) == 1 else f"{mean:.2f} ± {high - mean:.2f}"


def _distance(figure: Mapping[str, Any] | None) -> str:
    if figure is None or figure["interval"] is None:
        return _amount(figure, "{:.3f}")
    _, high = figure["interval"]
    return f"{figure['mean']:.3f} ± {high - figure['mean']:.3f}"


def _amount(figure: Mapping[str, Any] | None, form: str) -> str:
    return "-" if figure is None else form.format(figure["mean"])
