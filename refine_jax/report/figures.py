"""The figures of a report, by matplotlib: each as PNG and SVG for a paper, and as SVG inside of the page.

Matplotlib is imported where something is drawn, so that it costs nobody else anything.
"""

import contextlib
import html
import io
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from refine_jax.report import counts
from refine_jax.report.gallery import Cell, Example
from refine_jax.report.projection import Projection

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#1b1c1e"  # lines and texts; of the page's own color there
# Of a brightness that can be seen on white and on black.
BLUE, ORANGE, GREEN, RED, GRAY, VIOLET = "#3f7fd1", "#c9700a", "#2f9464", "#d1495b", "#838992", "#8a63c4"
SERIES = (GRAY, BLUE, ORANGE, GREEN, VIOLET, RED)
# Of more classifiers than there are colors, each turn through them has its own.
MARKERS = "os^Dv"
# Of classes; without the gray of the triggered images' crosses.
CLASS_COLORS = (BLUE, ORANGE, GREEN, RED, VIOLET, "#8c564b", "#d367b0", "#d9a300", "#7f9a1f", "#17a5b8")
DESTINATION_COLORS = dict(zip(counts.DESTINATIONS, (GREEN, RED, ORANGE, GRAY), strict=True))
_WIDTH = 4.6  # inches, as wide as a phone shows without making texts smaller
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
    "text.parse_math": False,  # a class may be called $a$
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}
# Names of more classes than these would lie on each other.
_MOST_NAMES, _MOST_NUMBERS = 60, 12


@contextlib.contextmanager
def _figure(height: float, width: float = _WIDTH) -> Iterator["Figure"]:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        yield Figure(figsize=(width, height), layout="constrained")


def save(figure: "Figure", folder: pathlib.Path, name: str) -> str:
    """Writes name.png and name.svg.

    Returns:
        The SVG.
    """
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):  # no chance in the names inside
        figure.savefig(folder / f"{name}.png", dpi=160, facecolor="white")
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    (folder / f"{name}.svg").write_text(text.getvalue())
    return text.getvalue()


def inline(svg: str, name: str, alt: str) -> str:
    """Returns an SVG as it can stand in a page: in the page's color, with a text for who cannot see it.

    Args:
        svg: From `save`.
        name: That no other figure of the page has.
        alt: The text.
    """
    body = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    for pattern in (r'\bid="', r"url\(#", r'href="#'):  # names are the page's, not the figure's
        body = re.sub(pattern, lambda found: f"{found.group()}{name}-", body)
    body = body.replace(INK, "currentColor")
    body = re.sub(r"font: [^;\"]*?([\d.]+px)[^;\"]*", r"font-size: \1", body)  # the page's own font
    tag, rest = body.split(">", 1)
    tag = re.sub(r' (width|height)="[^"]*"', "", tag)
    return f'{tag} role="img" aria-label="{html.escape(alt)}">{rest}'


def draw_curves(curves: Mapping[str, np.ndarray]) -> "Figure":
    """Draws a training: losses above, shares below, over steps.

    Args:
        curves: name -> [points], 'step' among them.
    """
    losses = [name for name in ("loss", "classification", "contrastive") if name in curves]
    shares = [name for name in ("accuracy", "agreement") if name in curves]
    with _figure(1.6 * (1 + bool(shares)) + 0.4) as figure:
        axes = figure.subplots(1 + bool(shares), 1, sharex=True, squeeze=False)[:, 0]
        for ax, names in zip(axes, (losses, shares), strict=False):
            for name, color in zip(names, (BLUE, ORANGE, GREEN), strict=False):
                ax.plot(curves["step"], curves[name], color=color, linewidth=1.2, label=name)
            ax.legend(loc="best")
        if shares:
            axes[1].set_ylim(-0.02, 1.02)
        axes[-1].set_xlabel("step")
    return figure


def draw_classes(accuracies: Mapping[str, Sequence[Any]], class_names: Sequence[str]) -> "Figure":
    """Draws what share of each class's clean images is answered rightly, with intervals.

    Args:
        accuracies: Classifier to `counts.class_accuracies`.
        class_names: [K]
    """
    places = np.arange(len(class_names))
    with _figure(0.9 + max(0.2, 0.11 * len(accuracies)) * len(places)) as figure:
        ax = figure.subplots()
        drawn: list[Any] = []
        for number, found in enumerate(accuracies.values()):
            offset = (number - (len(accuracies) - 1) / 2) * 0.7 / len(accuracies)
            known = [i for i in range(len(places)) if found[i] is not None]
            shares = np.array([100 * found[i]["share"] for i in known])
            low, high = (np.array([100 * found[i]["ci95"][end] for i in known]) for end in (0, 1))
            turn, place = divmod(number, len(SERIES))
            look: dict[str, Any] = {"color": SERIES[place], "fmt": MARKERS[turn % len(MARKERS)], "ms": 3.5, "lw": 1}
            errors = np.maximum(0, [shares - low, high - shares])
            drawn.append(ax.errorbar(shares, places[known] + offset, xerr=errors, **look))
        ax.set_yticks(places, class_names if len(class_names) <= _MOST_NAMES else ["" for _ in places])
        ax.invert_yaxis()
        ax.set_xlabel("answered rightly, %")
        ax.grid(axis="x", color=GRAY, alpha=0.3, linewidth=0.5)
        figure.legend(drawn, [*accuracies], loc="outside upper left", ncols=3)
    return figure


def draw_confusion(confused: np.ndarray, class_names: Sequence[str]) -> "Figure":
    """Draws a confusion matrix: rows are true classes, as shares; where there is room, the counts.

    Args:
        confused: From `counts.confusion`. [K, K]
        class_names: [K]
    """
    from matplotlib.colors import LinearSegmentedColormap

    shares = confused / np.maximum(confused.sum(axis=1, keepdims=True), 1)
    colors = LinearSegmentedColormap.from_list("shares", [BLUE + "00", BLUE + "ff"])
    with _figure(4.4) as figure:
        ax = figure.subplots()
        ax.imshow(shares, cmap=colors, vmin=0, vmax=1, interpolation="nearest")
        places = np.arange(len(class_names))
        if len(places) <= _MOST_NUMBERS:
            for (row, column), count in np.ndenumerate(confused):
                if count:
                    color = "white" if shares[row, column] > 0.6 else INK
                    ax.text(column, row, str(count), ha="center", va="center", fontsize=7, color=color)
        names = class_names if len(places) <= _MOST_NAMES else ["" for _ in places]
        size = 8 if len(places) <= 20 else 4
        ax.set_xticks(places, names, rotation=90 if max(map(len, class_names)) > 2 else 0, fontsize=size)
        ax.set_yticks(places, names, fontsize=size)
        ax.set_xlabel("answered")
        ax.set_ylabel("true class")
        for spine in ax.spines.values():
            spine.set_visible(True)
    return figure


def draw_flow(flow: np.ndarray, class_names: Sequence[str], names: Mapping[str, str]) -> "Figure":
    """Draws where triggered images of each class, at the left, went, at the right.

    Args:
        flow: From `counts.destinations`. [K, 4]
        class_names: [K]
        names: Destination to what stands beside it.
    """
    from matplotlib.patches import PathPatch, Rectangle
    from matplotlib.path import Path

    total = max(1, int(flow.sum()))
    rows = [row for row in range(len(flow)) if flow[row].sum()]
    columns = [column for column in range(flow.shape[1]) if flow[:, column].sum()]
    gap = 0.012 * total
    left = _stack([flow[row].sum() for row in rows], gap)
    right = _stack([flow[:, column].sum() for column in columns], 3 * gap)
    with _figure(3.4) as figure:
        ax = figure.subplots()
        starts, ends = list(left), list(right)
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                if not (count := int(flow[row, column])):
                    continue
                a, b = starts[i], ends[j]
                starts[i], ends[j] = a + count, b + count
                corners = [(0.02, a), (0.45, a), (0.55, b), (0.98, b)]
                back = [(0.98, b + count), (0.55, b + count), (0.45, a + count), (0.02, a + count), (0.02, a)]
                codes = [Path.MOVETO, *3 * [Path.CURVE4], Path.LINETO, *3 * [Path.CURVE4], Path.CLOSEPOLY]
                color = DESTINATION_COLORS[counts.DESTINATIONS[column]]
                ax.add_patch(PathPatch(Path(corners + back, codes), facecolor=color, alpha=0.45, linewidth=0))
        for i, row in enumerate(rows):
            ax.add_patch(Rectangle((0, left[i]), 0.02, flow[row].sum(), facecolor=INK, linewidth=0))
            if len(rows) <= 25:
                middle = left[i] + flow[row].sum() / 2
                ax.text(-0.015, middle, class_names[row], ha="right", va="center", fontsize=8)
        tall = max(left[-1] + flow[rows[-1]].sum(), right[-1] + flow[:, columns[-1]].sum()) if rows else 1
        middles = _apart([right[j] + flow[:, column].sum() / 2 for j, column in enumerate(columns)], 0.13 * tall)
        for j, column in enumerate(columns):
            count, name = int(flow[:, column].sum()), counts.DESTINATIONS[column]
            color = DESTINATION_COLORS[name]
            ax.add_patch(Rectangle((0.98, right[j]), 0.02, count, facecolor=color, linewidth=0))
            said = f"{names[name]}\n{count} ({100 * count / total:.1f} %)"
            # Labels of small bars are moved apart; a line leads from each to its bar.
            ax.plot((1, 1.03), (right[j] + count / 2, middles[j]), color=color, linewidth=1, clip_on=False)
            ax.text(1.04, middles[j], said, ha="left", va="center", fontsize=8)
        ax.set_xlim(-0.02, 1.02)
        ax.set_ylim(max([tall, *middles]), min([0.0, *middles]))
        ax.axis("off")
    return figure


def draw_strengths(
    field: str,
    values: Sequence[Any],
    found: Mapping[str, Sequence[tuple[float, float, float]]],
    before: Mapping[str, float],
    chosen: int | None,
) -> "Figure":
    """Draws what the strength of a defense does to its figures.

    Args:
        field: The setting that says how strong it is.
        values: Of it, in order.
        found: Figure's title to (percent, low, high) at each value.
        before: Of those figures, what they are without a defense, in percent; drawn as dotted lines.
        chosen: Which of the values the configuration names.
    """
    places = np.arange(len(values))
    with _figure(2.8) as figure:
        ax = figure.subplots()
        for (title, points), color in zip(found.items(), (BLUE, RED, GREEN), strict=False):
            shares, low, high = np.transpose(points)
            errors = np.maximum(0, [shares - low, high - shares])
            ax.errorbar(places, shares, yerr=errors, fmt="o-", ms=3.5, lw=1.2, color=color, label=title)
            if title in before:
                ax.axhline(before[title], color=color, linewidth=1, linestyle=":")
        if chosen is not None:
            ax.axvline(chosen, color=GRAY, linewidth=1, linestyle="--", zorder=0)
        ax.set_xticks(places, [str(value) for value in values])
        ax.set_ylim(-3, 103)
        ax.set_xlabel(field.replace("_", " "))
        ax.set_ylabel("%")
        figure.legend(loc="outside upper left", ncols=3)
    return figure


def _stack(heights: Sequence[int], gap: float) -> list[float]:
    """Returns where bars begin that stand above each other."""
    return [float(sum(heights[:i]) + i * gap) for i in range(len(heights))]


def _apart(places: Sequence[float], distance: float) -> list[float]:
    """Moves places that are in order so that none is nearer to the next than a distance, as little as is simple."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + distance) if moved else place)
    excess = moved[-1] - places[-1] if places else 0
    # What was pushed out at the end is pushed back from there.
    for i in range(len(moved) - 1, -1, -1):
        limit = moved[i] - excess if i == len(moved) - 1 else moved[i + 1] - distance
        moved[i] = min(moved[i], limit)
    return moved


def draw_features(found: Projection, labels: np.ndarray | None, class_names: Sequence[str]) -> "Figure":
    """Draws features in two dimensions: benign images as dots, of the colors of their classes, triggered as crosses.

    Args:
        found: The places.
        labels: Classes of the benign images. Integers [n]; None where they are not known.
        class_names: [K]
    """
    with _figure(3.6) as figure:
        ax = figure.subplots()
        named: list[tuple[str, Any]] = []  # given to the legend, which by itself leaves out names that begin with _
        given: dict[str, Any] = {"s": 8, "linewidths": 0, "alpha": 0.7, "rasterized": True}
        if labels is None or len(class_names) > len(CLASS_COLORS):
            named.append(("benign", ax.scatter(*found.benign.T, color=BLUE, **given)))
        else:
            for label, name in enumerate(class_names):
                dots = ax.scatter(*found.benign[labels == label].T, color=CLASS_COLORS[label], **given)
                named.append((name, dots))
        if found.triggered is not None:
            crosses: dict[str, Any] = {"marker": "x", "s": 12, "linewidths": 0.7, "alpha": 0.8, "rasterized": True}
            color = RED if labels is None else GRAY
            named.append(("triggered", ax.scatter(*found.triggered.T, color=color, **crosses)))
        first, second = 100 * found.explained
        ax.set_xlabel(f"first component, {first:.0f} % of the variance")
        ax.set_ylabel(f"second, {second:.0f} %")
        ax.set_xticks([])
        ax.set_yticks([])
        look: dict[str, Any] = {"ncols": 6, "markerscale": 1.5, "columnspacing": 1, "handletextpad": 0.1}
        names, handles = [name for name, _ in named], [handle for _, handle in named]
        figure.legend(handles, names, loc="outside lower center", **look)
    return figure


def draw_gallery(examples: Sequence[Example], class_names: Sequence[str]) -> "Figure":
    """Draws the gallery: one image beside the other, the answers below.

    Args:
        examples: From `gallery.make`.
        class_names: [K]
    """
    columns = [*examples[0].cells]
    size = next(cell.image.shape[:2] for cell in examples[0].cells.values() if cell)
    scale = 0.85 / max(size)  # inches a pixel
    width, height = size[1] * scale + 0.1, size[0] * scale + 0.32
    with _figure(height * len(examples) + 0.3, width * len(columns) + 0.8) as figure:
        ax = figure.subplots()
        for row, example in enumerate(examples):
            top = row * height + 0.3
            label = "" if example.label is None else class_names[example.label]
            ax.text(0.7, top + size[0] * scale / 2, label, ha="right", va="center", fontsize=7)
            for column, (title, cell) in enumerate(example.cells.items()):
                left = column * width + 0.8
                if not row:
                    ax.text(left, 0.26, title.replace(", ", ",\n"), va="bottom", fontsize=7)
                if cell is None:
                    continue
                ax.imshow(cell.image, extent=(left, left + size[1] * scale, top + size[0] * scale, top))
                said = "\n".join(line for line, _ in caption(cell, class_names))
                ax.text(left, top + size[0] * scale + 0.03, said, va="top", fontsize=5)
        ax.set_xlim(0, width * len(columns) + 0.8)
        ax.set_ylim(height * len(examples) + 0.3, 0)
        ax.axis("off")
    return figure


def caption(cell: Cell, class_names: Sequence[str], label: int | None = None) -> list[tuple[str, bool]]:
    """Returns a line for each answer to an image of the gallery, and whether it is known to be wrong."""
    return [(f"{who}: {class_names[answer]}", label not in (None, answer)) for who, answer in cell.answers]
