"""What the figure of the privacy that a run spends shows; like those in `plots`. None where nothing is blurred."""

from __future__ import annotations

import math

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from atoll.runs.plots import BLUE, COLUMN, ORANGE, percent, round_axis
from atoll.runs.promise import NOT_PRIVATE
from atoll.runs.story import Story

__all__ = ["spent"]


def spent(story: Story) -> Figure | None:
    """Epsilon over rounds beside the budget, and under it the share of updates that were clipped where it is known."""
    told = [(each["round"], each["spent"]) for each in story.rounds if each.get("spent")]
    if not told:
        return None
    rounds = [number for number, _ in told]
    epsilon = [math.nan if each.get("epsilon") is None else each["epsilon"] for _, each in told]
    clipped = [math.nan if each.get("clipped") is None else each["clipped"] for _, each in told]
    both = not all(map(math.isnan, clipped))
    figure = Figure((COLUMN, 3.2 if both else 2.3))
    top, *low = figure.subplots(2, sharex=True, height_ratios=[2, 1]) if both else [figure.add_subplot()]
    top.plot(rounds, epsilon, color=BLUE, label="epsilon, at most")
    if story.budget is not None:
        top.axhline(story.budget, color="#555555", linewidth=0.8, linestyle=(0, (4, 3)), label="budget")
    top.set_ylim(0)
    top.set_ylabel(f"epsilon (delta = {told[-1][1]['delta']:g})")
    top.grid(True, axis="y")
    for axes in low:
        axes.plot(rounds, clipped, color=ORANGE)
        axes.set_ylim(-0.05, 1.05)
        axes.set_ylabel("updates clipped")
        axes.yaxis.set_major_formatter(FuncFormatter(percent))
        axes.grid(True, axis="y")
    round_axis([top, *low][-1])
    if not story.promised["private"]:
        top.set_title(NOT_PRIVATE, color="#b00020")
    figure.legend(loc="outside upper left", ncols=2)
    return figure
