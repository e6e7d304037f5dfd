"""A run for the eye: the live table of rounds, a plain line a round, and the summary at the end."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from atoll.evaluation import Evaluation, Spread
from atoll.federation import Callback, Federation, Round, Run

__all__ = ["Lines", "LiveTable", "bytes_text", "result_text", "result_view", "sparkline"]

_SHOWN = 10
_BLOCKS = "▁▂▃▄▅▆▇█"


# --- while it runs ------------------------------------------------------------------------------------------


class LiveTable(Callback):
    """The last rounds in a table that is drawn anew as they come, under a progress bar. For terminals."""

    def __init__(self, console: Console, title: str, detail: str) -> None:
        self.console = console
        self.title = title
        self.detail = detail
        self.rounds: deque[Round] = deque(maxlen=_SHOWN)
        self.engine = ""

    def on_start(self, federation: Federation) -> None:
        self.bar = Progress(
            TextColumn("round"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            expand=True,
        )
        self.job = self.bar.add_task("rounds", total=federation.rounds)
        self.live = Live(
            console=self.console, get_renderable=self._view, refresh_per_second=4, transient=True
        )
        self.live.start(refresh=True)

    def on_round_end(self, federation: Federation, record: Round) -> None:
        self.rounds.append(record)
        self.engine = federation.engine.describe()
        self.bar.update(self.job, completed=record.number)

    def on_end(self, federation: Federation, run: Run) -> None:
        self.close()

    def close(self) -> None:
        """Take the table off the screen (also after an error)."""
        if hasattr(self, "live"):
            self.live.stop()

    def _view(self) -> RenderableType:
        head = Text(self.title, style="bold")
        head.append(f"\n{self.detail}\n{self.engine or 'choosing an engine ...'}", style="not bold dim")
        parts: list[RenderableType] = [head, self.bar]
        if self.rounds:
            parts.append(_rounds_table(list(self.rounds)))
        return Group(*parts)


class Lines(Callback):
    """One plain line a round, for logs and pipes."""

    def __init__(self, console: Console, title: str, detail: str) -> None:
        self.console = console
        self.title = title
        self.detail = detail

    def on_start(self, federation: Federation) -> None:
        self._print(f"{self.title}; {self.detail}")

    def on_round_end(self, federation: Federation, record: Round) -> None:
        if record.number == 1:
            self._print(f"engine: {federation.engine.describe()}")
        width = len(str(federation.rounds))
        cells = [f"round {record.number:>{width}}/{federation.rounds}", f"clients {_cohort(record)}"]
        cells.append(f"loss {_number(record.loss)}")
        cells += [f"{name} {text}" for name, text in _measures(record.evaluation).items() if text]
        cells += [f"up {bytes_text(record.bytes_up)}", f"down {bytes_text(record.bytes_down)}"]
        self._print("  ".join([*cells, f"{record.seconds:.3g} s"]))

    def close(self) -> None:
        """Nothing is left open."""

    def _print(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


def _rounds_table(rounds: Sequence[Round]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), expand=True)
    measured = [_measures(r.evaluation) for r in rounds]
    names = list(dict.fromkeys(name for each in measured for name in each))
    for title in ["round", "clients", "loss", *names, "up", "down", "s"]:
        table.add_column(title, justify="right", no_wrap=True)
    for record, found in zip(rounds, measured, strict=True):
        table.add_row(
            str(record.number),
            _cohort(record),
            _number(record.loss),
            *(found.get(name, "") for name in names),
            bytes_text(record.bytes_up),
            bytes_text(record.bytes_down),
            f"{record.seconds:.2g}",
            style="yellow" if record.refused else "",
        )
    return table


def _cohort(record: Round) -> str:
    """Who took part: 10, or 8 (1 refused, 1 dropped)."""
    trouble = [
        f"{len(who)} {what}"
        for who, what in ((record.refused, "refused"), (record.dropped, "dropped"))
        if who
    ]
    ok = len(record.cohort) - len(record.refused)
    return f"{ok} ({', '.join(trouble)})" if trouble else str(ok)


def _measures(evaluation: Evaluation | None) -> dict[str, str]:
    """The figures of an evaluation that a round shows, by heading."""
    if evaluation is None:
        return {}
    name = evaluation.measure
    cells = {}
    if name in evaluation.overall:
        cells["test loss" if name == "loss" else name] = _value(name, evaluation.overall[name])
    if name in evaluation.clients:
        spread = evaluation.clients[name]
        cells["p10"] = _value(name, spread.p10)
        cells["worst"] = _value(name, _worst(name, spread))
    if name in evaluation.personal:
        cells["personal"] = _value(name, evaluation.personal[name].mean)
    return cells


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
        parts.append(_scores(last))
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column()
    for name, text in _facts(run):
        facts.add_row(name, text)
    parts.append(facts)
    if last is not None and (bars := _bars(last)) is not None:
        parts += [Text(), bars]
    return Group(*parts)


def _scores(last: Evaluation) -> Table:
    name = last.measure
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column(name, style="dim")
    for heading in ("test set", "client mean", "± std", "p10", "median", "worst", "best"):
        table.add_column(heading, justify="right", no_wrap=True)
    rows: list[tuple[str, float | None, Spread | None]] = []
    if last.overall or last.clients:
        rows.append(("global model", last.overall.get(name), last.clients.get(name)))
    if last.personal:
        rows.append(("personal models", None, last.personal[name]))
    for title, overall, spread in rows:
        cells = ["–" if overall is None else _value(name, overall)]
        if spread is None:
            cells += ["–"] * 6
        else:
            best = spread.min if name == "loss" else spread.max
            figures = (spread.mean, spread.std, spread.p10, spread.median, _worst(name, spread), best)
            cells += [_value(name, figure) for figure in figures]
        table.add_row(title, Text(cells[0], style="bold green"), *cells[1:])
    return table


def _facts(run: Run) -> list[tuple[str, str]]:
    facts = []
    last = run.evaluation
    name = last.measure if last else "accuracy"
    history = run.history(name)
    if len(history) > 1:
        first, final = history[0][1], history[-1][1]
        picture = sparkline([value for _, value in history])
        facts.append((f"{name} by round", f"{_value(name, first)} {picture} {_value(name, final)}"))
    if last is not None and name == "accuracy" and "loss" in last.overall:
        facts.append(("test loss", _number(last.overall["loss"])))
    reached = f", target reached in round {run.target_round}" if run.target_round is not None else ""
    facts.append(("rounds", f"{len(run.rounds)}{reached}"))
    if run.rounds:
        clients = [len(r.cohort) for r in run.rounds]
        each = f"{min(clients)}" if min(clients) == max(clients) else f"{min(clients)} to {max(clients)}"
        judged = last.own[name].clients if last and name in last.own else None
        facts.append(("clients", f"{each} a round" + (f"; {judged} judged" if judged is not None else "")))
    trouble = {
        "refused": sum(len(r.refused) for r in run.rounds),
        "dropped": sum(len(r.dropped) for r in run.rounds),
    }
    if any(trouble.values()):
        facts.append(("replies", ", ".join(f"{count} {what}" for what, count in trouble.items() if count)))
    up, down = sum(r.bytes_up for r in run.rounds), sum(r.bytes_down for r in run.rounds)
    facts.append(("traffic", f"{bytes_text(up)} up, {bytes_text(down)} down"))
    facts.append(("time", f"{run.seconds:.3g} s, {run.seconds_per_round:.3g} s a round without evaluation"))
    facts.append(("engine", run.engine))
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
        label = " to ".join(_value(name, end, 0) for end in ends)
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


def bytes_text(count: int) -> str:
    """Bytes in powers of 1000: 812 B, 3.2 MB."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 999.5 or unit == "TB":
            break
        size /= 1000
    return f"{size:.3g} {unit}"


def _worst(name: str, spread: Spread) -> float:
    return spread.max if name == "loss" else spread.min


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "–"


def _value(name: str, value: float, digits: int = 1) -> str:
    """A measure as people read it: accuracies in percent."""
    if name == "accuracy" and math.isfinite(value):
        return f"{100 * value:.{digits}f} %"
    return _number(value)
