"""What the figures show. Every function draws on a figure of its own, or returns None where there is nothing to draw.

Widths are those of one column (3.4 inches) and of a page (7 inches) in common two-column papers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from atoll.measures import Figures
from atoll.runs.compare_view import COLOURS
from atoll.runs.story import Story
from atoll.words import bytes_text

__all__ = ["affinity", "distribution", "labels", "measure", "participation", "traffic"]

COLUMN, PAGE = 3.4, 7.0  # inches
BLUE, ORANGE, GREEN = COLOURS[:3]
_BLUES = LinearSegmentedColormap.from_list("atoll-blues", ["#ffffff", "#9ecbe8", "#2b83ba", "#0b3c5d"])
_DIVERGING = LinearSegmentedColormap.from_list(
    "atoll-diverging", ["#b35806", "#fdb863", "#f7f7f7", "#74a9cf", "#08519c"]
)
_ROWS = 120  # clients in a heat map of participation; more are drawn in groups of neighbours


def measure(story: Story, name: str) -> Figure | None:
    """A measure over rounds: the global model, and of what clients would use the middle 80 % and the worst client."""
    if not story.curve(name):
        return None
    figure = Figure((COLUMN, 2.5))
    axes = figure.add_subplot()
    kind = "personal" if any(e.get("personal", {}).get(name) for _, e in story.evaluations) else "clients"
    found = [(number, e[kind][name]) for number, e in story.evaluations if e.get(kind, {}).get(name)]
    if found:
        rounds = [number for number, _ in found]
        worst = "max" if Figures({}, story.measure, story.better).direction(name) == "lower" else "min"
        who = "clients" if kind == "clients" else "personal models"
        low, high, poorest = (_column([spread for _, spread in found], key) for key in ("p10", "p90", worst))
        axes.fill_between(rounds, low, high, color=BLUE, alpha=0.18, linewidth=0, label=f"{who}, p10 to p90")
        axes.plot(rounds, poorest, color=ORANGE, linewidth=0.9, label="worst client")
    if name == "loss":
        trained = [(e["round"], e["loss"]) for e in story.rounds if e.get("loss") is not None]
        axes.plot(
            *zip(*trained, strict=True),
            color="#555555",
            linewidth=0.8,
            linestyle=(0, (3, 2)),
            label="training",
        )
    whole = {
        number: value
        for number, e in story.evaluations
        if (value := (e.get("overall") or {}).get(name)) is not None
    }
    if whole:
        axes.plot(list(whole), list(whole.values()), color=BLUE, label="global model, test set")
    own = [(n, e["personal"][name]["mean"]) for n, e in story.evaluations if e.get("personal", {}).get(name)]
    if own:
        axes.plot(*zip(*own, strict=True), color=GREEN, label="personal models, mean")
    measure_axis(axes, name)
    round_axis(axes)
    figure.legend(loc="outside upper left", ncols=2)
    return figure


def distribution(story: Story) -> Figure | None:
    """The share of clients at or below each value of the main measure: at first, at last, and with personal models."""
    name = story.measure
    judged = [(number, e.get("each") or {}) for number, e in story.evaluations]
    lines: list[tuple[str, Any, str, float]] = []
    for kind, colour, title in (("clients", BLUE, "global model"), ("personal", GREEN, "personal models")):
        seen = [
            (number, values)
            for number, each in judged
            if (values := _known((each.get(kind) or {}).get(name)))
        ]
        if not seen:
            continue
        if len(seen) > 1 and kind == "clients":
            lines.append((f"{title}, round {seen[0][0]}", seen[0][1], "#999999", 1.0))
        lines.append((f"{title}, round {seen[-1][0]}", seen[-1][1], colour, 1.4))
    if not lines:
        return None
    figure = Figure((COLUMN, 2.2 + 0.15 * ((len(lines) + 1) // 2)))
    axes = figure.add_subplot()
    for title, values, colour, width in lines:
        axes.ecdf(values, color=colour, linewidth=width, label=title)
    axes.set_ylabel("share of clients")
    axes.yaxis.set_major_formatter(FuncFormatter(percent))
    axes.set_ylim(0, 1.02)
    axes.grid(True)
    if name == "accuracy":
        axes.xaxis.set_major_formatter(FuncFormatter(percent))
    axes.set_xlabel(f"client's test {name}")
    figure.legend(loc="outside upper left", ncols=2)
    return figure


def traffic(story: Story) -> Figure | None:
    """Bytes up and down of all clients together, cumulative over rounds."""
    if not story.rounds:
        return None
    figure = Figure((COLUMN, 2.0))
    axes = figure.add_subplot()
    rounds = [e["round"] for e in story.rounds]
    for key, title, colour, style in (
        ("bytes_up", "up (clients to server)", BLUE, "-"),
        ("bytes_down", "down (server to clients)", ORANGE, (0, (4, 2))),
    ):
        total = np.cumsum([e.get(key) or 0 for e in story.rounds])
        axes.plot(rounds, total, color=colour, linestyle=style, label=title)
    axes.set_ylabel("traffic, cumulative")
    axes.set_ylim(0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: bytes_text(round(value)) if value else "0"))
    axes.grid(True, axis="y")
    round_axis(axes)
    axes.legend(loc="upper left")
    return figure


def participation(story: Story) -> Figure | None:
    """Who took part in which round; more than 120 clients are drawn in groups of neighbours."""
    population = story.start.get("clients") or 0
    if not story.rounds or not population:
        return None
    rows = min(population, _ROWS)
    came = _attendance(story, population, rows, "cohort")
    lost = _attendance(story, population, rows, "dropped", "refused")
    figure = Figure((PAGE, min(4.2, 1.1 + 0.045 * rows)))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[6, 1])
    rounds = [each["round"] for each in story.rounds]
    extent = (rounds[0] - 0.5, rounds[-1] + 0.5, population - 0.5, -0.5)
    how: dict[str, Any] = {"aspect": "auto", "interpolation": "none", "extent": extent, "vmin": 0}
    if rows == population:
        left.imshow(
            np.where(lost > 0, 2, came), cmap=ListedColormap(["#f1f1f1", BLUE, ORANGE]), vmax=2, **how
        )
        squares = [Patch(color=BLUE, label="took part")]
        squares += [Patch(color=ORANGE, label="dropped or refused")] if lost.any() else []
        figure.legend(handles=squares, loc="outside upper left", ncols=2, handlelength=0.8)
    else:
        image = left.imshow(came, cmap=_BLUES, **how)
        bar = figure.colorbar(image, ax=left, location="top", aspect=60, pad=0.02)
        bar.ax.xaxis.set_major_formatter(FuncFormatter(percent))
        bar.set_label(f"share of {population / rows:.0f} neighbouring clients that took part")
        bar.outline.set_visible(False)
    left.set_ylabel("client")
    left.spines[:].set_visible(False)
    left.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    round_axis(left)
    middle = (np.arange(rows) + 0.5) * population / rows - 0.5
    right.barh(middle, came.mean(1), height=0.8 * population / rows, color=BLUE)
    right.xaxis.set_major_formatter(FuncFormatter(percent))
    right.xaxis.set_major_locator(MaxNLocator(2))
    right.set_xlabel("of rounds")
    right.tick_params(left=False)
    right.spines.left.set_visible(False)
    return figure


def _attendance(
    story: Story, population: int, rows: int, *lists: str
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """[row, round]: the share of the row's clients that are in one of these lists of the round."""
    found = np.zeros((rows, len(story.rounds)))
    for column, each in enumerate(story.rounds):
        clients = {int(client) for name in lists for client in each.get(name) or ()}
        for client in clients:
            if client < population:
                found[client * rows // population, column] += 1
    # how many clients fall into a row: row r holds those with client * rows // population == r
    held = np.bincount(np.arange(population) * rows // population, minlength=rows)
    return found / held[:, None]


def labels(story: Story) -> Figure | None:
    """What share of each client's samples has which label, and how many samples there are."""
    report = ((story.last("partition") or {}).get("report")) or {}
    sizes = report.get("sizes") or []
    counts = report.get("counts")
    if not sizes:
        return None
    rows = np.arange(len(sizes))
    figure = Figure((COLUMN, min(4.6, max(1.6, 0.9 + 0.055 * len(sizes)))))
    if counts is None:
        axes = figure.add_subplot()
        axes.bar(rows, sizes, width=0.8, color=BLUE)
        axes.set_xlabel("client")
        axes.set_ylabel("training samples")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return figure
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[3, 1])
    table = np.asarray(counts, dtype=float)
    share = table / np.maximum(table.sum(1, keepdims=True), 1)
    image = left.imshow(share, aspect="auto", interpolation="none", cmap=_BLUES, vmin=0, vmax=1)
    left.set_xlabel("label")
    left.set_ylabel("client")
    left.spines[:].set_visible(False)
    for axis in (left.xaxis, left.yaxis):
        axis.set_major_locator(MaxNLocator(10, integer=True))
    right.barh(rows, sizes, height=0.8, color=ORANGE)
    right.set_xlabel("samples")
    right.xaxis.set_major_locator(MaxNLocator(2, integer=True))
    right.tick_params(left=False)
    right.spines.left.set_visible(False)
    bar = figure.colorbar(image, ax=left, location="top", aspect=30, pad=0.02)
    bar.ax.xaxis.set_major_formatter(FuncFormatter(percent))
    bar.set_label("share of the client's samples")
    bar.outline.set_visible(False)
    return figure


def affinity(story: Story) -> Figure | None:
    """The last affinity matrix, similar clients beside each other."""
    found = story.last("affinity")
    if found is None or not found.get("matrix"):
        return None
    matrix = np.array([[np.nan if v is None else v for v in row] for row in found["matrix"]], dtype=float)
    order = seriated(matrix)
    figure = Figure((COLUMN, 3.0))
    axes = figure.add_subplot()
    image = axes.imshow(matrix[np.ix_(order, order)], cmap=_DIVERGING, vmin=-1, vmax=1, interpolation="none")
    names = [str(found["clients"][k]) for k in order] if found.get("clients") else [str(k) for k in order]
    step = -(-len(names) // 20)
    axes.set_xticks(range(0, len(names), step), names[::step], rotation=90)
    axes.set_yticks(range(0, len(names), step), names[::step])
    axes.tick_params(length=0, labelsize=5.5)
    axes.set_xlabel("client, similar ones beside each other")
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, aspect=25, pad=0.02)
    bar.set_label(f"{found.get('of', 'affinity')}, round {found.get('round', '?')}")
    bar.outline.set_visible(False)
    return figure


def seriated(matrix: np.ndarray[Any, np.dtype[np.float64]]) -> list[int]:
    """An order in which similar ones are neighbours: average-linkage clustering, leaves from left to right."""
    near = np.nan_to_num(matrix.copy(), nan=-1.0)
    near = (near + near.T) / 2
    clusters = [[k] for k in range(len(near))]
    while len(clusters) > 1:
        np.fill_diagonal(near, -np.inf)
        i, j = sorted(map(int, np.unravel_index(np.argmax(near), near.shape)))
        a, b = len(clusters[i]), len(clusters[j])
        near[i] = near[:, i] = (a * near[i] + b * near[j]) / (a + b)
        near = np.delete(np.delete(near, j, 0), j, 1)
        clusters[i] += clusters.pop(j)
    return clusters[0]


def percent(value: float, _: object = None) -> str:
    """A share as a label: 25%, 97.5%."""
    return f"{100 * value:.3g}%"


def measure_axis(axes: Axes, name: str) -> None:
    axes.set_ylabel(name)
    axes.grid(True, axis="y")
    if name == "accuracy":
        axes.yaxis.set_major_formatter(FuncFormatter(percent))


def round_axis(axes: Axes) -> None:
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True, steps=[1, 2, 5, 10]))


def time_axis(axes: Axes) -> None:
    """An axis of virtual seconds."""
    axes.set_xlabel("virtual seconds")
    axes.xaxis.set_major_locator(MaxNLocator(7))


def epsilon_axis(axes: Axes) -> None:
    """An axis of privacy."""
    axes.set_xlabel("epsilon, at most")
    axes.xaxis.set_major_locator(MaxNLocator(7))


def _column(spreads: Sequence[Any], key: str) -> list[float]:
    return [np.nan if spread.get(key) is None else spread[key] for spread in spreads]


def _known(values: Sequence[float | None] | None) -> list[float]:
    return [value for value in values or () if value is not None]
