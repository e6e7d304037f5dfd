"""A run for the eye: the live table of rounds, and a plain line a round."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path

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

from atoll.rounds.evaluation import Evaluation
from atoll.rounds.history import Round
from atoll.runs.events import Event
from atoll.runs.readers import Reader
from atoll.words import bytes_text, number_text, value_text

__all__ = ["Lines", "LiveTable", "Screen"]

_SHOWN = 10


# --- while it runs ------------------------------------------------------------------------------------------


class Screen(Reader):
    """What both displays have in common: the run's title, its rounds and what goes wrong beside it."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.planned = 0
        self.title = self.detail = ""
        self.judged: list[int] = []

    def event(self, event: Event) -> None:
        kind = event["event"]
        if kind == "start":
            self.planned = event["rounds"]
            self.title, self.detail = _heading(event)
        elif kind == "resume":
            self.planned = event["rounds"]
            self.resumed(event["round"])
        elif kind == "partition":
            self.judged = event["judged"]
        elif kind == "engine":
            self.engine(event["text"])
        elif kind == "round":
            self.round(Round.of_event(event, self.judged))

    def resumed(self, after: int) -> None:
        """The run goes on after this round."""

    def engine(self, text: str) -> None:
        """The engine was chosen."""

    def round(self, record: Round) -> None:
        """A round is over."""


class LiveTable(Screen):
    """The last rounds in a table that is drawn anew as they come, under a progress bar. For terminals."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self.rounds: deque[Round] = deque(maxlen=_SHOWN)
        self.chosen = ""

    def open(self, folder: Path | None) -> None:
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
        self.job = self.bar.add_task("rounds", total=None)
        self.live = Live(
            console=self.console, get_renderable=self._view, refresh_per_second=4, transient=True
        )
        self.live.start(refresh=True)

    def event(self, event: Event) -> None:
        super().event(event)
        if event["event"] in ("start", "resume"):
            self.bar.update(self.job, total=self.planned)

    def resumed(self, after: int) -> None:
        self.title = self.title or f"resumed after round {after}"
        self.bar.update(self.job, completed=after)

    def engine(self, text: str) -> None:
        self.chosen = text

    def round(self, record: Round) -> None:
        self.rounds.append(record)
        self.bar.update(self.job, completed=record.number)

    def close(self) -> None:
        """Take the table off the screen (also after an error)."""
        if hasattr(self, "live"):
            self.live.stop()

    def _view(self) -> RenderableType:
        head = Text(self.title, style="bold")
        head.append(f"\n{self.detail}\n{self.chosen or 'choosing an engine ...'}", style="not bold dim")
        parts: list[RenderableType] = [head, self.bar]
        if self.rounds:
            parts.append(_rounds_table(list(self.rounds)))
        return Group(*parts)


class Lines(Screen):
    """One plain line a round, for logs and pipes."""

    def event(self, event: Event) -> None:
        super().event(event)
        if event["event"] == "start":
            self._print(f"{self.title}; {self.detail}")

    def resumed(self, after: int) -> None:
        self._print(f"resumed after round {after}")

    def engine(self, text: str) -> None:
        self._print(f"engine: {text}")

    def round(self, record: Round) -> None:
        width = len(str(self.planned))
        cells = [f"round {record.number:>{width}}/{self.planned}", f"clients {_cohort(record)}"]
        cells.append(f"loss {number_text(record.loss)}")
        cells += [f"{name} {text}" for name, text in _measures(record.evaluation).items() if text]
        cells += [f"up {bytes_text(record.bytes_up)}", f"down {bytes_text(record.bytes_down)}"]
        self._print("  ".join([*cells, f"{record.seconds:.3g} s"]))

    def _print(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


def _heading(start: Event) -> tuple[str, str]:
    """What runs, and how it is set, from the event "start"."""
    clients = f"{start['cohort']} of {start['clients']:,} clients a round"
    title = f"{start['method']} on {start['data']}, {start['partition']}, {clients}"
    settings = [(key, start["config"].get(key)) for key in ("lr", "epochs", "steps", "batch_size")]
    shown = [f"{key} {value:g}" for key, value in settings if value is not None]
    return title, ", ".join([*shown, f"{start['parameters']:,} parameters on {start['device']}"])


def _rounds_table(rounds: Sequence[Round]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), expand=True)
    measured = [_measures(r.evaluation) for r in rounds]
    names = list(dict.fromkeys(name for each in measured for name in each))
    for title in ["round", "clients", "loss", *names, "up", "down", "s"]:
        table.add_column(title.replace(" ", "\n"), justify="right", no_wrap=True)
    for record, found in zip(rounds, measured, strict=True):
        table.add_row(
            str(record.number),
            _cohort(record),
            number_text(record.loss),
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
    bad = "p90" if name == "loss" else "p10"
    figures = {
        "client mean": "own", f"test {name}": name, bad: "p10", "worst": "worst", "newcomers": "newcomers",
    }  # fmt: skip
    found = {title: evaluation.value(figure) for title, figure in figures.items()}
    if name not in evaluation.overall:
        found[f"test {name}"] = None
    return {title: value_text(name, value) for title, value in found.items() if value is not None}
