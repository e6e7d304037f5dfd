"""A comparison for the eye: tables for terminals, and tables with a picture for notebooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from math import ceil, floor, log10
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from atoll.runs import spreads
from atoll.runs.averages import Average, Compared, Group
from atoll.runs.promise import NOT_PRIVATE
from atoll.words import value_text

__all__ = ["COLOURS", "html", "text", "ticks", "titles", "view"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5C3E", "#000000")
"""Okabe and Ito's colours, which people who cannot tell red from green can tell apart, the stronger ones first."""

_LABEL = 18  # letters that a name may be wrapped to before columns are left out
_DROPPED = ("pooled", "newcomers", "std", "p10", "worst")  # the first to be left out comes first

Words = Callable[[float, float | None], str]  # a mean and its standard deviation, in words


class Rows(NamedTuple):
    """A table: headings, cells, the places (row, column) of the best, and what was left out for want of room."""

    headings: list[str]
    cells: list[list[str]]
    best: Sequence[tuple[int, int]] = ()
    without: Sequence[str] = ()


def text(comparison: Compared, width: int = 100) -> str:
    """The comparison as plain text."""
    console = Console(
        width=width, color_system=None, force_terminal=False, highlight=False, legacy_windows=False
    )
    with console.capture() as capture:
        console.print(view(comparison))
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def view(comparison: Compared) -> RenderableType:
    """How good each experiment is, then what it cost; as many columns as there is room for."""
    return _View(comparison)


class _View:
    def __init__(self, comparison: Compared) -> None:
        self.comparison = comparison

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        def fits(rows: Rows) -> bool:
            spare = max(0, max(len(line[0]) for line in rows.cells) - _LABEL)
            return Measurement.get(console, options.update(width=1000), _table(rows)).maximum - spare <= (
                options.max_width
            )

        tables = _tables(self.comparison, fits)
        yield from map(_table, tables)
        yield Text(_note(self.comparison, [name for rows in tables for name in rows.without]), style="dim")
        for line in _failed(self.comparison):
            yield Text(line, style="red")


def html(comparison: Compared) -> str:
    """The tables and the curves, without scripts or anything from elsewhere."""
    parts = [_svg(comparison), *map(_html_table, _tables(comparison, lambda _: True))]
    notes = "<br>".join(escape(text) for text in (_note(comparison), *_failed(comparison)))
    return f"<div>{''.join(parts)}<small>{notes}</small></div>"


# --- what the tables hold -----------------------------------------------------------------------------------------


def _tables(comparison: Compared, fits: Callable[[Rows], bool]) -> list[Rows]:
    arrivals = [] if comparison.goal is None else [_arrivals(comparison)]
    return [*_scores(comparison, fits), *arrivals, _totals(comparison)]


def _scores(comparison: Compared, fits: Callable[[Rows], bool]) -> list[Rows]:
    """How good the models are, and how clients fare beside Local: in one table if it fits, else in two.

    Where there is no room for even that, figures are left out, the less important ones first.
    """
    tables = [group.table for group in comparison.groups]
    known = [key for key in titles(comparison) if any(table[key] is not None for table in tables)]
    scores, beside = ([key for key in known if (key in _BESIDE) == side] for side in (False, True))
    whole = _figures(comparison, tables, known)
    if fits(whole):
        return [whole]
    rest = [_figures(comparison, tables, beside, "beside local")] if beside else []
    left: list[str] = []
    place = 2 if any(table["personal"] is not None for table in tables) else len(_DROPPED)
    for key in ("", *_DROPPED[:place], "global", *_DROPPED[place:]):  # what matters where models are personal
        left += [key] if key in scores else []
        kept = [each for each in scores if each not in left]
        rows = _figures(comparison, tables, kept)
        if fits(rows):
            break
    return [rows._replace(without=[titles(comparison)[key] for key in scores if key in left]), *rest]


def _figures(
    comparison: Compared, tables: Sequence[Mapping[str, Any]], keys: Sequence[str], title: str = ""
) -> Rows:
    measure = comparison.measure
    words = spreads.percent if measure == "accuracy" else spreads.plain
    cells = [
        [group.label, str(len(group.stories)), *(_figure(table, key, words) for key in keys)]
        for group, table in zip(comparison.groups, tables, strict=True)
    ]
    best = []
    for column, key in enumerate(keys, start=2):
        found = [
            (each.mean, row) for row, table in enumerate(tables) if isinstance(each := table[key], Average)
        ]
        if len(found) > 1 and key != "std":  # to be equally bad everywhere is no merit
            falls = key == "worse_off" or (measure == "loss" and key != "gain")
            winner = (min if falls else max)(found)[0]
            best += [(row, column) for value, row in found if value == winner]
    unit = "accuracy, %" if measure == "accuracy" else measure
    return Rows([title or unit, "seeds", *(titles(comparison)[key] for key in keys)], cells, best)


def titles(comparison: Compared) -> dict[str, str]:
    """The figures of models that a comparison shows, and what each is called."""
    return {
        "global": "test set",
        "own": "client mean",
        "pooled": "pooled",
        "std": "std",
        "p10": "p90" if comparison.measure == "loss" else "p10",
        "worst": "worst",
        "newcomers": "newcomers",
        **_BESIDE,
    }


_BESIDE = {"gain": "gain", "worse_off": "worse off"}


def _figure(table: Mapping[str, Any], key: str, words: Words) -> str:
    value = table[key]
    if not isinstance(value, Average):
        return "–"
    if key == "std":
        return words(value.mean, None)  # a spread of a spread would only confuse
    if key == "gain":
        return ("+" if value.mean > 0 else "") + words(value.mean, value.std)
    if key == "worse_off":
        by = table["worse_by"]
        share = f"{100 * value.mean:.0f}" + ("" if value.std is None else f" ± {100 * value.std:.0f}")
        return f"{share} %" + ("" if by is None else f" ({words(-by.mean, None)})")
    return words(value.mean, value.std)


def _arrivals(comparison: Compared) -> Rows:
    costs = _costs(comparison)
    tables = [group.table for group in comparison.groups]
    rows = []
    for group, table in zip(comparison.groups, tables, strict=True):
        cells = [_cost(group, table, f"{key}_to_target", words) for key, (_, words) in costs.items()]
        rows.append([group.label, f"{table['reached']} of {len(group.stories)}", *cells])
    best = []
    for column, key in enumerate(costs, start=2):
        found = [
            (each.mean, row)
            for row, table in enumerate(tables)
            if isinstance(each := table[f"{key}_to_target"], Average)
            and (key != "epsilon" or comparison.groups[row].private)
        ]
        if len(found) > 1:
            best += [(row, column) for value, row in found if value == min(found)[0]]
    return Rows(
        [f"to {comparison.goal}", "reached by", *(heading for heading, _ in costs.values())], rows, best
    )


def _totals(comparison: Compared) -> Rows:
    costs = _costs(comparison)
    wasted = {"wasted": ("wasted, %", spreads.percent)} if comparison.clocked else {}
    rows = []
    for group in comparison.groups:
        table = group.table
        rows.append(
            [
                group.label,
                *(_cost(group, table, key, words) for key, (_, words) in {**costs, **wasted}.items()),
            ]
        )
    return Rows(["in all", *(heading for heading, _ in {**costs, **wasted}.values())], rows)


def _costs(comparison: Compared) -> dict[str, tuple[str, Words]]:
    """What runs cost: figure -> its heading and words. The machine's time is called so where there is a virtual one."""
    found: dict[str, tuple[str, Words]] = {"rounds": ("rounds", spreads.count)}
    if comparison.clocked:
        found |= {"virtual_seconds": ("virtual time", spreads.seconds), "energy": ("energy", spreads.energy)}
    machine = "machine time" if comparison.clocked else "time"
    found |= {"bytes": ("traffic", spreads.traffic), "seconds": (machine, spreads.seconds)}
    return found | ({"epsilon": ("epsilon", spreads.epsilon)} if comparison.blurred else {})


def _cell(value: Average | int | None, words: Words) -> str:
    return words(value.mean, value.std) if isinstance(value, Average) else "–"


def _cost(group: Group, table: Mapping[str, Average | int | None], key: str, words: Words) -> str:
    found = _cell(table[key], words)
    return f"({found})" if key.startswith("epsilon") and group.private is False else found


def _note(comparison: Compared, without: Sequence[str] = ()) -> str:
    def known(key: str) -> bool:
        return any(group.table[key] is not None for group in comparison.groups)

    parts = []
    if any(len(group.stories) > 1 for group in comparison.groups):
        parts.append("mean ± standard deviation over seeds")
    tail = titles(comparison)["p10"]
    if known("personal"):
        parts.append(
            f"client mean, pooled (over samples), std, {tail} and worst are of the models that clients would use: "
            "their own where there are any"
        )
    elif known("own"):
        parts.append(f"client mean, std, {tail} and worst count each client once, pooled each sample")
    if known("worse_off"):
        parts.append(
            "gain is over clients' local models; worse off is the share of clients whose local model is better, and by "
            "how much on average"
        )
    if comparison.goal is not None:
        parts.append("costs to the target are of the seeds that reached it")
    if comparison.clocked:
        parts.append("virtual time is that of the clients' devices, machine time that of this simulation")
        bare = [group.label for group in comparison.groups if not any(s.clocks for s in group.stories)]
        if bare:
            parts.append(f"no virtual clock: {', '.join(bare)}")
    parts += _privacy(comparison)
    parts.append("machine time without evaluations" if comparison.clocked else "time without evaluations")
    if without:
        parts.append(f"no room here for {', '.join(without)}")
    note = "; ".join(parts)
    return note[0].upper() + note[1:] + "."


def _privacy(comparison: Compared) -> list[str]:
    """At which delta epsilon is, and where it is no promise."""
    deltas = {group.label: group.delta for group in comparison.groups if group.delta is not None}
    if not deltas:
        return []
    values = set(deltas.values())
    one = f"{min(values):g}" if len(values) == 1 else ", ".join(f"{v:g} ({k})" for k, v in deltas.items())
    parts = [f"epsilon at delta = {one}" + ("; to the target at most" if comparison.goal else "")]
    if open_ := [group.label for group in comparison.groups if group.private is False]:
        parts.append(f"in brackets, {NOT_PRIVATE}, which keeps no promise: {', '.join(open_)}")
    if plain := [group.label for group in comparison.groups if group.private is None]:
        parts.append(f"no noise: {', '.join(plain)}")
    return parts


def _failed(comparison: Compared) -> list[str]:
    return [f"Left out: {text}" for text in comparison.failed]


# --- tables -------------------------------------------------------------------------------------------------------


def _table(rows: Rows) -> Table:
    headings, cells, best, _ = rows
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False, collapse_padding=True)
    for column, title in enumerate(headings):
        table.add_column(
            title,
            justify="right" if column else "left",
            no_wrap=bool(column),
            overflow="fold",
            header_style="bold" if column else "dim",
        )
    for row, line in enumerate(cells):
        table.add_row(*(Text(c, "bold green" if (row, k) in best else "") for k, c in enumerate(line)))
    return table


def _html_table(rows: Rows) -> str:
    headings, cells, best, _ = rows
    sides = ["left", *["right"] * (len(headings) - 1)]
    titles = zip(sides, headings, strict=True)
    head = "".join(
        f"<th style='padding:2px 8px;text-align:{side}'>{escape(title)}</th>" for side, title in titles
    )
    body = ""
    for row, line in enumerate(cells):
        body += "<tr>"
        for column, cell in enumerate(line):
            weight = ";font-weight:bold" if (row, column) in best else ""
            body += f"<td style='padding:2px 8px;text-align:{sides[column]}{weight}'>{escape(cell)}</td>"
        body += "</tr>"
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


# --- the picture --------------------------------------------------------------------------------------------------


def _svg(comparison: Compared, width: int = 640, height: int = 260) -> str:
    """The curves with their bands. Colours follow the surroundings where they can (dark notebooks)."""
    curves = [group.curve(comparison.shown) for group in comparison.groups]
    values = [value for curve in curves for value in (*curve.low, *curve.high)]
    rounds = [number for curve in curves for number in curve.rounds]
    if not values:
        return ""
    goal = comparison.goal
    line = goal.value if goal and goal.measure == comparison.shown else None
    marks = ticks(min(values), max(values))
    left, right, top, bottom = 58, 12, 10, 34
    least, most = min(*values, marks[0]), max(*values, marks[-1])
    first, last = min(rounds), max(max(rounds), min(rounds) + 1)

    def x(number: float) -> float:
        return left + (width - left - right) * (number - first) / (last - first)

    def y(value: float) -> float:
        return top + (height - top - bottom) * (most - value) / (most - least)

    def points(numbers: Sequence[float], heights: Sequence[float]) -> str:
        return " ".join(f"{x(n):.1f},{y(v):.1f}" for n, v in zip(numbers, heights, strict=True))

    parts = []
    for mark in marks:
        label = value_text(comparison.measure, mark, 0 if marks[1] - marks[0] >= 0.01 else 1)
        parts.append(
            f"<line x1='{left}' x2='{width - right}' y1='{y(mark):.1f}' y2='{y(mark):.1f}' stroke='currentColor' "
            f"stroke-opacity='.15'/><text x='{left - 6}' y='{y(mark) + 4:.1f}' text-anchor='end'>{label}</text>"
        )
    parts += [
        f"<text x='{x(number):.1f}' y='{height - 18}' text-anchor='middle'>{number:g}</text>"
        for number in ticks(first, last, 6)
        if first <= number <= last and number == int(number)
    ]
    parts.append(f"<text x='{(left + width) / 2}' y='{height - 3}' text-anchor='middle'>round</text>")
    if line is not None and least <= line <= most:
        parts.append(
            f"<line x1='{left}' x2='{width - right}' y1='{y(line):.1f}' y2='{y(line):.1f}' stroke='currentColor' "
            "stroke-opacity='.6' stroke-dasharray='4 3'/>"
        )
    legend = ""
    for index, (group, curve) in enumerate(zip(comparison.groups, curves, strict=True)):
        colour = COLOURS[index % len(COLOURS)]
        band = points([*curve.rounds, *reversed(curve.rounds)], [*curve.high, *reversed(curve.low)])
        parts.append(f"<polygon points='{band}' fill='{colour}' fill-opacity='.18'/>")
        parts.append(
            f"<polyline points='{points(curve.rounds, curve.mean)}' fill='none' stroke='{colour}' stroke-width='1.8'/>"
        )
        legend += f"<span style='color:{colour}'>&#9632;</span> {escape(group.label)} &#8195;"
    about = f"viewBox='0 0 {width} {height}' width='{width}' height='{height}' fill='currentColor'"
    about += " font-family='system-ui,sans-serif' font-size='11'"
    svg = f"<svg xmlns='http://www.w3.org/2000/svg' {about}>{''.join(parts)}</svg>"
    return f"<div>{svg}<div>{legend}</div></div>"


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`, at least two."""
    span = high - low if high > low else abs(low) or 1.0
    rough = span / about
    unit = 10.0 ** floor(log10(rough))
    step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= rough * 0.999)
    start, stop = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    return [round(step * k, 12) for k in range(start, max(stop, start + 1) + 1)]
