"""Runs for the terminal: the table of all, the card of one, and an event in a line."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from atoll.measures import called
from atoll.runs.events import Event
from atoll.runs.grouping import value_words
from atoll.runs.listing import Entry
from atoll.runs.promise import ENDED, NOT_PRIVATE, epsilon_text
from atoll.runs.story import Story
from atoll.show.fitted import Column, Fitted
from atoll.show.scores import confusion, scores, worst_text
from atoll.show.summary import clock_facts, machine_time, privacy_facts, sparkline
from atoll.words import bytes_text, duration_text, number_text, value_text

__all__ = ["card", "line", "table"]

_STYLES = {"finished": "green", "running": "cyan", "stopped": "yellow", "cut off": "yellow"}


def table(entries: Sequence[Entry]) -> RenderableType:
    """All runs, a line each, with the sweep that they are of. Names and figures are whole, at any width."""
    measures = {entry.story.measure for entry in entries if entry.story.start}
    title = f"test {measures.pop()}" if len(measures) == 1 else "test set"
    clocked = any(entry.story.clocks for entry in entries)
    times = [Column("virtual time", 3), Column("machine time", 4)] if clocked else [Column("time", 3)]
    privacy = [Column("epsilon", 3)] if any(entry.story.promised for entry in entries) else []
    sweeps = any((entry.folder.path.parent / "sweep.json").exists() for entry in entries)
    columns = [
        Column("run", text=True, style="bold"),
        Column("status", text=True),
        Column("method", 1, text=True),
        Column("data", 5, text=True),
        Column("partition", 6, text=True),
        Column("round"),
        Column("client mean"),
        Column(title, 2),
        Column("worst client", 4),
        *times,
        *privacy,
    ]
    view = Fitted([*columns, *([Column("sweep", 7, text=True)] if sweeps else [])])
    for entry in entries:
        story = entry.story
        status = entry.status + (" !" if entry.damaged else "")
        cells = [str(story.start.get(key) or "–") for key in ("method", "data", "partition")]
        cells.append(f"{entry.round}/{story.planned or '?'}")
        test = story.value({"overall": story.final.get("overall")}, story.measure)
        cells += [_score(story, value) for value in (story.value(story.final, "own"), test)]
        cells.append(_score(story, story.value(story.final, "worst")))
        spent = story.spent()
        if clocked:
            cells.append("–" if spent.virtual_seconds is None else duration_text(spent.virtual_seconds))
        cells.append(duration_text(spent.seconds))
        if privacy:
            cells.append(_epsilon(story))
        if sweeps:
            parent = entry.folder.path.parent
            cells.append(parent.name.removeprefix("sweep-") if (parent / "sweep.json").exists() else "")
        view.add([entry.folder.name, Text(status, _STYLES.get(entry.status, "red")), *cells])
    notes = []
    if any(entry.damaged for entry in entries):
        notes.append("! lines of its events cannot be read")
    if any(entry.story.promised.get("private") is False for entry in entries):
        notes.append(f"(epsilon) {NOT_PRIVATE}")
    return Group(view, *(Text(note, "dim") for note in notes)) if notes else view


def card(entry: Entry) -> RenderableType:
    """One run."""
    story = entry.story
    start = story.start
    title = Text(
        f"{start.get('method', '?')} on {start.get('data', '?')}, {start.get('partition', '?')}", "bold"
    )
    title.append(f"  {entry.status}", _STYLES.get(entry.status, "red"))
    parts: list[RenderableType] = [title, Text(str(entry.folder.path), "dim")]
    if story.final:
        parts.append(scores(story.final, story.measure, story.better))
        parts += confusion(story.final)
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column()
    for name, text in [*_course(entry), *_setup(story), *_trouble(entry)]:
        grid.add_row(name, Text(text))
    parts.append(grid)
    if entry.can_resume:
        path = shlex.quote(str(entry.folder.path))
        parts.append(Text(f"\ngo on with: atoll run --resume {path}"))
    return Group(*parts)


def line(event: Event) -> str:
    """An event as a line of text; empty for those that only the page needs."""
    words = {
        "start": lambda: (
            f"{event.get('method')} on {event.get('data')}, {event.get('partition')}, "
            f"seed {event.get('seed')}, {event.get('rounds')} rounds, {event.get('clients')} clients"
        ),
        "engine": lambda: f"engine: {event.get('text')}",
        "round": lambda: _round_line(event),
        "checkpoint": lambda: f"checkpoint {event.get('path')}",
        "resume": lambda: f"resumed after round {event.get('round')}, to {event.get('rounds')} rounds",
        "problem": lambda: f"problem: {event.get('where')}: {event.get('message')}",
        "result": lambda: (
            f"over ({event.get('reason')}) after {event.get('rounds')} rounds"
            + (f", best on validation data in round {event['best_round']}" if event.get("best_round") else "")
        ),
        "error": lambda: f"error: {event.get('message')}",
    }
    kind = event["event"]
    moment = time.strftime("%H:%M:%S", time.localtime(event.get("time") or 0))
    return f"{moment}  {words[kind]()}" if kind in words else ""


# --- parts of the card --------------------------------------------------------------------------------------------


def _course(entry: Entry) -> list[tuple[str, str]]:
    """How the run went."""
    story = entry.story
    rows = []
    values = list(story.curve(story.main).values())
    if len(values) > 1:
        ends = [value_text(story.measure, value) for value in (values[0], values[-1])]
        title = f"{called(story.main, story.measure)} by round"
        rows.append((title, f"{ends[0]} {sparkline(values)} {ends[1]}"))
    if (text := worst_text(story.own, story.measure, story.names, story.tested)) is not None:
        rows.append(("worst client", text))
    result = story.last("result") or {}
    of = f" of {story.planned}" if story.planned else ""
    named = {
        "target reached in": result.get("target_round"),
        "best on validation data in": result.get("best_round"),
    }
    told = [f"{what} round {number}" for what, number in named.items() if number]
    told += [ENDED] if result.get("reason") == "budget" else []
    told += ["all tokens read"] if result.get("reason") == "tokens" else []
    rows.append(("rounds", ", ".join([f"{entry.round}{of}", *told])))
    counts = {key: sum(len(e.get(key) or ()) for e in story.rounds) for key in ("refused", "dropped")}
    counts |= {key: sum(len(c.get(key) or ()) for c in story.clocks) for key in ("late", "failed")}
    if any(counts.values()):
        rows.append(("replies", ", ".join(f"{count} {what}" for what, count in counts.items() if count)))
    up, down = (sum(e.get(f"bytes_{way}") or 0 for e in story.rounds) for way in ("up", "down"))
    rows.append(("traffic", f"{bytes_text(up)} up, {bytes_text(down)} down"))
    clocked = story.clocked
    if clocked:
        rows += clock_facts(clocked, result.get("participation"))
    rows += privacy_facts(story.promised)
    rows.append((machine_time(clocked), f"{duration_text(story.spent().seconds)} without evaluations"))
    engine = story.last("engine")
    return rows + ([("engine", str(engine.get("text")))] if engine else [])


def _setup(story: Story) -> list[tuple[str, str]]:
    """What was run, where it differs from the defaults, and with what."""
    start = story.start
    changed = start.get("changed", list(story.config))  # older runs do not say: then all of them
    other = {
        key: story.config[key] for key in changed if key not in ("runs", "method") and key in story.config
    }
    words = [f"{key}={value_words(key, value)}" for key, value in other.items()]
    rows = [("settings", ", ".join(words) or "all defaults")] if story.config else []
    if start.get("parameters"):
        rows.append(
            ("model", f"{start.get('model')}, {start['parameters']:,} parameters on {start.get('device')}")
        )
    if start.get("clients"):
        rows.append(("clients", f"{start.get('cohort')} of {start['clients']:,} a round"))
    if start.get("command"):
        rows.append(("command", start["command"]))
    if start.get("commit"):
        rows.append(("commit", start["commit"]))
    return rows


def _trouble(entry: Entry) -> list[tuple[str, str]]:
    story = entry.story
    rows = []
    error = story.last("error")
    if error is not None and entry.status != "running":
        rows.append(("error", str(error.get("message"))))
        if error.get("hint"):
            rows.append(("hint", str(error["hint"])))
    problems = [f"{each.get('where')}: {each.get('message')}" for each in story.of("problem")]
    rows += [("problem" if k == 0 else "", text) for k, text in enumerate(dict.fromkeys(problems))]
    if entry.damaged:
        rows.append(("damaged", f"{entry.damaged} lines of events.jsonl cannot be read and were left out"))
    if entry.status == "cut off":
        rows.append(("cut off", "the process ended without a word: killed, or out of memory or power"))
    return rows


# --- words --------------------------------------------------------------------------------------------------------


def _score(story: Story, value: float | None) -> str:
    return "–" if value is None else value_text(story.measure, value)


def _epsilon(story: Story) -> str:
    """Epsilon of all rounds, in brackets where nothing is promised."""
    found = story.promised
    if not found:
        return "–"
    return epsilon_text(found["epsilon"]) if found["private"] else f"({epsilon_text(found['epsilon'])})"


def _round_line(event: Event) -> str:
    cells = [f"round {event.get('round')}", f"clients {len(event.get('cohort') or ())}"]
    if event.get("loss") is not None:
        cells.append(f"training loss {number_text(event['loss'])}")
    found = event.get("evaluation") or {}
    cells += [
        f"{name} {value_text(name, value)}" for name, value in (found.get("overall") or {}).items() if value
    ]
    if spent := event.get("spent"):
        mark = "" if spent["private"] else " (not private)"
        cells.append(f"epsilon ≤{epsilon_text(spent['epsilon'])}{mark}")
    clock, machine = event.get("clock"), duration_text(event.get("seconds") or 0)
    if clock:
        cells += [f"{len(clock[what])} {what}" for what in ("late", "failed") if clock[what]]
        cells.append(f"virtual {duration_text(clock['ended'])}")
        machine = f"machine {machine}"
    cells.append(machine)
    return "  ".join(cells)
