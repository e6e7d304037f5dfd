"""What the figures of runs on a virtual clock show; like those in `plots`. None without a clock."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from atoll.measures import called
from atoll.runs.plots import BLUE, COLUMN, GREEN, ORANGE, PAGE, measure_axis, time_axis
from atoll.runs.story import Story
from atoll.runs.virtual import Order, orders

__all__ = ["devices", "virtual_time"]

_ROUNDS = 6  # in the picture of devices
_ROWS = 60  # clients in it
_PARTS = (("download", "#CC79A7"), ("compute", GREEN), ("upload", BLUE))


def virtual_time(story: Story) -> Figure | None:
    """The figure to look at first over virtual seconds."""
    ends = {each["round"]: each["clock"]["ended"] for each in story.rounds if each.get("clock")}
    curve = {number: value for number, value in story.curve(story.main).items() if number in ends}
    if not curve:
        return None
    figure = Figure((COLUMN, 2.3))
    axes = figure.add_subplot()
    title = "global model, test set" if story.main == story.measure else called(story.main, story.measure)
    axes.plot([ends[number] for number in curve], list(curve.values()), color=BLUE, label=title)
    measure_axis(axes, story.measure)
    time_axis(axes)
    figure.legend(loc="outside upper left")
    return figure


def devices(story: Story) -> Figure | None:
    """What clients' devices did when in the last rounds; of many clients those that were longest at work."""
    shown = [each for each in story.rounds if each.get("clock")][-_ROUNDS:]
    found: dict[
        tuple[int, float], Order
    ] = {}  # a late reply that is kept is told of twice; the last word counts
    late = set()
    for each in shown:
        for order in orders(each, story.keeps):
            found[order.client, order.began] = order
            if order.late:
                late.add((order.client, order.began))
    if not found:
        return None
    longest: dict[int, float] = {}
    for order in found.values():
        longest[order.client] = max(longest.get(order.client, 0.0), order.done - order.began)
    clients = sorted(longest, key=lambda client: (-longest[client], client))[:_ROWS]
    rows = {client: row for row, client in enumerate(clients)}
    figure = Figure((PAGE, min(6.0, 0.9 + 0.11 * len(clients))))
    axes = figure.add_subplot()
    for key, order in found.items():
        if order.client not in rows:
            continue
        row, at = rows[order.client], order.began
        pale = 1.0 if order.used or order.kept else 0.4
        for name, colour in _PARTS:
            width = max(0.0, min(getattr(order, name), order.done - at))
            axes.barh(row, width, left=at, height=0.7, color=colour, alpha=pale, linewidth=0)
            at += width
        if key in late:
            axes.plot(order.done, row, marker="|", color=ORANGE, markersize=6, markeredgewidth=1.4)
        if order.failed:
            axes.plot(order.done, row, marker="x", color="#000000", markersize=3.5, markeredgewidth=0.9)
    for each in shown:
        axes.axvline(each["clock"]["ended"], color="#bbbbbb", linewidth=0.5, zorder=0)
    first, end = shown[0]["clock"]["began"], shown[-1]["clock"]["ended"]
    earliest = min(first, *(order.began for order in found.values()))
    axes.set_xlim(max(2 * first - end, earliest), end)  # no more before the rounds than they have
    axes.set_ylim(len(clients) - 0.4, -0.6)
    axes.set_yticks(range(len(clients)), [story.names.get(client, str(client)) for client in clients])
    axes.tick_params(axis="y", length=0, labelsize=5.5)
    axes.set_ylabel("client")
    time_axis(axes)
    keys: list[Patch | Line2D] = [Patch(color=colour, label=name) for name, colour in _PARTS]
    keys.append(Line2D([], [], color=ORANGE, marker="|", linestyle="", label="late"))
    keys.append(Line2D([], [], color="#000000", marker="x", markersize=3.5, linestyle="", label="broken off"))
    figure.legend(handles=keys, loc="outside upper left", ncols=5, handlelength=0.8)
    return figure
