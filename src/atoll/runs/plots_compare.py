"""What the figures about several runs show; like those in `plots`."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from atoll.runs.averages import Average, Compared
from atoll.runs.compare_view import COLOURS, titles
from atoll.runs.plots import COLUMN, PAGE, epsilon_axis, measure_axis, round_axis, time_axis

__all__ = ["curves", "scores"]

_BARS = ("global", "own", "pooled", "p10", "worst", "newcomers")
_DASHES: tuple[Any, ...] = ("-", (0, (4, 2)), (0, (1, 1.5)))


def curves(comparison: Compared, name: str, over: str = "rounds") -> Figure | None:
    """A measure over rounds (or "virtual_seconds", "epsilon"), a line an experiment, with the band over its seeds."""
    drawn = [(group, curve) for group in comparison.groups if getattr(curve := group.curve(name), over)]
    if not drawn:
        return None
    columns = _columns(comparison, COLUMN)
    figure = Figure((COLUMN, 2.1 + 0.15 * -(-len(drawn) // columns)))
    axes = figure.add_subplot()
    for index, (group, curve) in enumerate(drawn):
        colour, style = COLOURS[index % len(COLOURS)], _DASHES[index // len(COLOURS) % len(_DASHES)]
        places = getattr(curve, over)
        axes.fill_between(places, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0)
        mark = "not private: " if over == "epsilon" and group.private is False else ""
        axes.plot(places, curve.mean, color=colour, linestyle=style, label=mark + group.label)
    goal = comparison.goal
    if goal is not None and goal.measure == name:
        axes.axhline(goal.value, color="#555555", linewidth=0.8, linestyle=(0, (4, 3)))
    measure_axis(axes, comparison.measure if name == "own" else name)
    if name == "own":
        axes.set_ylabel(f"{comparison.measure}, mean over clients")
    {"rounds": round_axis, "virtual_seconds": time_axis, "epsilon": epsilon_axis}[over](axes)
    figure.legend(loc="outside upper left", ncols=columns)
    return figure


def scores(comparison: Compared) -> Figure | None:
    """Final scores of every experiment as bars: mean over seeds, with one standard deviation to either side."""
    named = {key: title for key, title in titles(comparison).items() if key in _BARS}
    tables = [group.table for group in comparison.groups]
    used = [key for key in named if any(isinstance(table[key], Average) for table in tables)]
    if not used:
        return None
    wide = len(used) * len(tables) > 8
    columns = _columns(comparison, PAGE if wide else COLUMN)
    figure = Figure((PAGE if wide else COLUMN, 2.2 + 0.15 * -(-len(tables) // columns)))
    axes = figure.add_subplot()
    width = 0.84 / len(tables)
    for index, (group, table) in enumerate(zip(comparison.groups, tables, strict=True)):
        found = [
            (column, value) for column, key in enumerate(used) if isinstance(value := table[key], Average)
        ]
        places = [column + (index - (len(tables) - 1) / 2) * width for column, _ in found]
        again = index // len(COLOURS)  # colours have run out: the same ones hatched
        bars = axes.bar(
            places, [value.mean for _, value in found], width * 0.9, yerr=[value.std or 0.0 for _, value in found],
            color=COLOURS[index % len(COLOURS)], hatch=("", "////", "....")[again % 3] or None, edgecolor="white",
            linewidth=0, label=group.label, error_kw={"linewidth": 0.8, "ecolor": "#222222"},
        )  # fmt: skip
        if len(tables) <= 6:
            percent = comparison.measure == "accuracy"
            texts = [f"{100 * value.mean:.1f}" if percent else f"{value.mean:.3g}" for _, value in found]
            axes.bar_label(bars, texts, padding=2, fontsize=5.5, rotation=90)
    axes.set_xlim(-0.55, len(used) - 0.45)
    axes.set_xticks(range(len(used)), [named[key] for key in used])
    axes.tick_params(axis="x", length=0)
    measure_axis(axes, comparison.measure)
    if comparison.measure == "accuracy":
        axes.set_ylim(0, 1.12)
        axes.set_yticks(np.linspace(0, 1, 6))
    figure.legend(loc="outside upper left", ncols=columns)
    return figure


def _columns(comparison: Compared, width: float) -> int:
    """How many columns a legend has room for, in a figure so many inches wide."""
    longest = max(len(group.label) for group in comparison.groups)
    return max(1, min(len(comparison.groups), int(width / (0.4 + 0.056 * longest))))
