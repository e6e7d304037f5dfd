"""A finished run for the eye: the summary that ends `atoll run`, and what `print(run)` shows."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from atoll.measures import called
from atoll.runs.promise import ENDED, stated
from atoll.show.scores import score_rows, scores, worst_text
from atoll.words import bytes_text, duration_text, energy_text, number_text, value_text

if TYPE_CHECKING:
    from atoll.results import Run
    from atoll.rounds.evaluation import Evaluation

__all__ = [
    "clock_facts",
    "machine_time",
    "privacy_facts",
    "result_html",
    "result_text",
    "result_view",
    "sparkline",
]

_BLOCKS = "▁▂▃▄▅▆▇█"
_SCORES = ("test set", "client mean", "± std", "p10", "median", "worst", "best")

# --- when it is over ----------------------------------------------------------------------------------------


def result_text(run: Run, width: int = 92) -> str:
    """The summary as plain text."""
    console = Console(
        width=width, color_system=None, force_terminal=False, highlight=False, legacy_windows=False
    )
    with console.capture() as capture:
        console.print(result_view(run))
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def result_view(run: Run) -> RenderableType:
    """The summary of a run: how good the model is, for whom, and what it cost."""
    title = Text(f"{run.method} on {run.data}, {run.partition}", style="bold")
    last = run.evaluation
    parts: list[RenderableType] = [title]
    if last is not None:
        parts.append(scores(last.to_dict(), last.measure, run.better))
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column()
    for name, text in _facts(run):
        facts.add_row(name, Text(text, "yellow" if text.startswith("not private") else ""))
    parts.append(facts)
    if last is not None and (bars := _bars(last)) is not None:
        parts += [Text(), bars]
    return Group(*parts)


def result_html(run: Run) -> str:
    """The summary for a notebook: a table of scores, the facts under it, and the curve; text is escaped."""
    title = escape(f"{run.method} on {run.data}, {run.partition}")
    parts = [f"<b>{title}</b>"]
    last = run.evaluation
    if last is not None:
        headings, rows = score_rows(last.to_dict(), last.measure, run.better)
        head = "".join(f"<th>{escape(text)}</th>" for text in headings)
        body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
        parts.append(f"<table><tr>{head}</tr>{body}</table>")
        parts.append(_curve(run.history(last.first)))
    facts = "".join(
        f"<tr><th style='text-align:left'>{escape(name)}</th><td style='text-align:left'>{escape(text)}</td></tr>"
        for name, text in _facts(run)
    )
    return f"<div>{''.join(parts)}<table>{facts}</table></div>"


def _curve(history: Sequence[tuple[int, float]], width: int = 320, height: int = 72) -> str:
    """A measure by round as a small SVG line."""
    points = [(number, value) for number, value in history if math.isfinite(value)]
    if len(points) < 2:
        return ""
    low, high = min(v for _, v in points), max(v for _, v in points)
    span, first, last = (high - low) or 1.0, points[0][0], points[-1][0]
    line = " ".join(
        f"{4 + (width - 8) * (n - first) / (last - first):.1f},{height - 4 - (height - 8) * (v - low) / span:.1f}"
        for n, v in points
    )
    style = "fill='none' stroke='currentColor' stroke-width='1.5'"
    return f"<svg role='img' width='{width}' height='{height}'><polyline points='{line}' {style}/></svg>"


def _facts(run: Run) -> list[tuple[str, str]]:
    facts = []
    last = run.evaluation
    name = last.measure if last else "accuracy"
    first = last.first if last else name
    history = run.history(first)
    if len(history) > 1:
        begun, final = history[0][1], history[-1][1]
        picture = sparkline([value for _, value in history])
        title = f"{called(first, name)} by round"
        facts.append((title, f"{value_text(name, begun)} {picture} {value_text(name, final)}"))
    if last is not None:
        own = (last.each.get("personal") or last.each.get("clients") or {}).get(name) or {}
        names = {k: str(run.names[k]) for k in own if k < len(run.names)}
        if (text := worst_text(own, name, names, run.tested)) is not None:
            facts.append(("worst client", text))
    if last is not None and name == "accuracy" and "loss" in last.overall:
        facts.append(("test loss", number_text(last.overall["loss"])))
    reached = f", target reached in round {run.target_round}" if run.target_round is not None else ""
    best = f", best on validation data in round {run.best_round}" if run.best_round is not None else ""
    ended = f", {ENDED}" if run.reason == "budget" else ", all tokens read" if run.reason == "tokens" else ""
    facts.append(("rounds", f"{len(run.rounds)}{reached}{best}{ended}"))
    if run.tokens is not None:
        facts.append(("tokens", f"{run.tokens:,} read"))
    if run.rounds:
        clients = [len(r.cohort) for r in run.rounds]
        each = f"{min(clients)}" if min(clients) == max(clients) else f"{min(clients)} to {max(clients)}"
        judged = last.own[name].clients if last and name in last.own else None
        facts.append(("clients", f"{each} a round" + (f"; {judged} judged" if judged is not None else "")))
    trouble = {
        "refused": sum(len(r.refused) for r in run.rounds),
        "dropped": sum(len(r.dropped) for r in run.rounds),
    }
    clocks = [r.clock for r in run.rounds if r.clock is not None]
    trouble |= {"late": sum(len(c.late) for c in clocks), "failed": sum(len(c.failed) for c in clocks)}
    if any(trouble.values()):
        facts.append(("replies", ", ".join(f"{count} {what}" for what, count in trouble.items() if count)))
    up, down = sum(r.bytes_up for r in run.rounds), sum(r.bytes_down for r in run.rounds)
    facts.append(("traffic", f"{bytes_text(up)} up, {bytes_text(down)} down"))
    if last is not None and last.consensus is not None:
        facts[-1] = ("traffic", f"{bytes_text(up)} between peers")
        facts.append(("consensus", f"models are {number_text(last.consensus)} from their mean"))
    found = run.clocked()
    if found:
        facts += clock_facts(found, run.to_dict()["participation"])
    facts += privacy_facts(run.privacy)
    whole, each = duration_text(run.seconds), duration_text(run.seconds_per_round)
    facts.append((machine_time(found), f"{whole}, {each} a round without evaluation"))
    facts.append(("engine", run.engine))
    return facts


def machine_time(found: Mapping[str, float | None]) -> str:
    """What the seconds of this machine are called: "time", unless there are virtual ones beside them."""
    return "machine time" if found else "time"


def privacy_facts(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was promised of privacy, in lines that fit 80 columns with their title; nothing where nothing is blurred."""
    return [("privacy", textwrap.fill(stated(found), 56))] if found else []


def clock_facts(found: Mapping[str, float | None], participation: float | None) -> list[tuple[str, str]]:
    """What a run was on the virtual clock."""
    reached = found["target_virtual_seconds"]
    until = f", target after {duration_text(reached)}" if reached is not None else ""
    facts = [("virtual time", f"{duration_text(found['virtual_seconds'] or 0.0)}{until}")]
    work = f"{energy_text(found['energy'] or 0.0)}, {found['wasted'] or 0.0:.1%} of client time wasted"
    if found["staleness"]:
        work += f", staleness {found['staleness']:.2g}"
    facts.append(("devices", work))
    if participation is not None:
        facts.append(("participation", f"{participation:.2f} (Jain's index; 1: all clients as often)"))
    return facts


def _bars(last: Evaluation) -> Table | None:
    """How many clients have which accuracy: a histogram over ten or fewer equal bins."""
    name = last.measure
    each: Mapping[str, Mapping[int, float]] = last.each.get("personal") or last.each.get("clients") or {}
    values = [value for value in each.get(name, {}).values() if math.isfinite(value)]
    if len(values) < 5:
        return None
    low, high = min(values), max(values)
    if name == "accuracy":  # whole tenths, down to the tenth that holds the worst client
        low, high = math.floor(low * 10 + 1e-9) / 10, 1.0
        low = min(low, 0.9)
        bins = round((high - low) * 10)
    else:
        bins = 6 if high > low else 1
    counts = [0] * bins
    for value in values:
        counts[min(bins - 1, int((value - low) / (high - low) * bins + 1e-9)) if high > low else 0] += 1
    grid = Table.grid(padding=(0, 1))
    grid.add_column(justify="right", style="dim", no_wrap=True)
    grid.add_column(style="cyan", no_wrap=True)
    grid.add_row(f"clients by {name}", "")
    step = (high - low) / bins
    for index in reversed(range(bins)):
        ends = (low + index * step, low + (index + 1) * step)
        label = " to ".join(value_text(name, end, 0) for end in ends)
        grid.add_row(label, Text(_bar(counts[index], max(counts)) + f" {counts[index]}"))
    return grid


def _bar(count: int, largest: int, width: int = 40) -> str:
    return "█" * max(1, round(width * count / largest)) if count else "·"


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """Values as blocks between their least and greatest; of many, `width` evenly spaced ones."""
    if len(values) > width:
        values = [values[round(i * (len(values) - 1) / (width - 1))] for i in range(width)]
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[round((v - low) * scale)] if math.isfinite(v) else " " for v in values)
