"""A run for the eye: the live table of rounds, and a plain line a round."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Sequence, Sized
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from atoll.measures import ATTACK_SUCCESS
from atoll.rounds.evaluation import Evaluation
from atoll.rounds.history import Round
from atoll.runs.events import Event
from atoll.runs.promise import NOT_PRIVATE, epsilon_text, so_far
from atoll.runs.readers import Reader
from atoll.show.fitted import Column, Fitted, live
from atoll.words import bytes_text, duration_text, number_text, value_text

__all__ = ["Lines", "LiveTable", "Screen", "cells_of", "columns_of"]

_SHOWN = 10


# --- while it runs ------------------------------------------------------------------------------------------


class Screen(Reader):
    """What both displays have in common: the run's title, its rounds and what goes wrong beside it."""

    def __init__(self) -> None:
        self.planned = self.done = 0
        self.title = self.detail = ""
        self.chosen = ""
        self.budget: float | None = None
        self.rounds: deque[Round] = deque(maxlen=_SHOWN)

    def event(self, event: Event) -> None:
        kind = event["event"]
        if kind == "start":
            self.planned = event["rounds"]
            self.title, self.detail = _heading(event)
            self.budget = event["config"].get("epsilon")
        elif kind == "resume":
            self.planned, self.done = event["rounds"], event["round"]
            self.title = self.title or f"resumed after round {self.done}"
            self.resumed(self.done)
        elif kind == "engine":
            self.chosen = event["text"]
            self.engine(self.chosen)
        elif kind == "round":
            record = _shown(event)
            self.done = record.number
            self.rounds.append(record)
            self.round(record)

    @property
    def privacy(self) -> str:
        """What the last round says of privacy: epsilon at most 1.71 of 6 ...; empty where nothing is blurred."""
        spent = self.rounds[-1].spent if self.rounds else None
        return "" if spent is None else f"privacy: {so_far(vars(spent), self.budget)}"

    def resumed(self, after: int) -> None:
        """The run goes on after this round."""

    def engine(self, text: str) -> None:
        """The engine was chosen."""

    def round(self, record: Round) -> None:
        """A round is over."""


def _shown(event: Event) -> Round:
    """A round without what is known of each of its clients, which no table has room for."""
    found = event["evaluation"]
    return Round.of_event({**event, "clients": {}, "evaluation": found and {**found, "each": {}}}, judged=())


class LiveTable(Screen):
    """The last rounds in a table that is drawn anew as they come, under a progress bar. For terminals."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

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
        # What the program prints on another stream than this one, such as a pipe, must go there.
        self.live = live(self.console, self._view, redirect_stdout=sys.stdout.isatty())
        self.live.start(refresh=True)

    def event(self, event: Event) -> None:
        super().event(event)
        self.bar.update(self.job, total=self.planned or None, completed=self.done)

    def close(self) -> None:
        """Take the table off the screen (also after an error)."""
        if hasattr(self, "live"):
            self.live.stop()

    def _view(self) -> RenderableType:
        head = Text(self.title, style="bold")
        head.append(f"\n{self.detail}\n{self.chosen or 'choosing an engine ...'}", style="not bold dim")
        if self.privacy:
            warns = NOT_PRIVATE in self.privacy
            head.append(f"\n{self.privacy}", style="not bold yellow" if warns else "not bold dim")
        parts: list[RenderableType] = [head, self.bar]
        if self.rounds:
            parts.append(_rounds_table(list(self.rounds)))
        return Group(*parts)


class Lines(Screen):
    """One plain line a round, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

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
        if record.spent is not None:
            of = "" if self.budget is None else f" of {self.budget:g}"
            cells.append(
                f"epsilon ≤{epsilon_text(record.spent.epsilon)}{of}{'' if record.spent.private else ' (not private)'}"
            )
        machine = duration_text(record.seconds)
        if record.clock is not None:
            cells.append(f"virtual {duration_text(record.clock.ended)}")
            machine = f"machine {machine}"
        self._print("  ".join([*cells, machine]))

    def _print(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


def _heading(start: Event) -> tuple[str, str]:
    """What runs, and how it is set, from the event "start"."""
    clients = f"{start['cohort']} of {start['clients']:,} clients a round"
    title = f"{start['method']} on {start['data']}, {start['partition']}, {clients}"
    settings = [(key, start["config"].get(key)) for key in ("lr", "epochs", "steps", "batch_size")]
    shown = [f"{key} {value:g}" for key, value in settings if value is not None]
    shown += [
        f"{key} {value}"
        for key in ("channel", "attackers", "attack", "dp_sgd")
        if (value := start["config"].get(key))
    ]
    return title, ", ".join([*shown, f"{start['parameters']:,} parameters on {start['device']}"])


def columns_of(rounds: Sequence[Round]) -> list[Column]:
    """The columns of a table of rounds. Where there is little room, how good the model is stays longest.

    On a virtual clock, "virtual" is when the round ended there, and "machine" how long it took this one.
    """
    names = list(dict.fromkeys(name for each in rounds for name in _measures(each.evaluation)))
    clocked = any(each.clock is not None for each in rounds)
    ranks = {"client mean": 0, "validation": 1, "newcomers": 3, "worst": 4, "p10": 5, "p90": 5}
    return [
        Column("round"),
        Column("clients", 3),
        Column("loss", 1),
        *(Column(name, ranks.get(name, 2)) for name in names),
        Column("up", 7),
        Column("down", 8),
        *([Column("virtual", 2), Column("machine", 6)] if clocked else [Column("time", 6)]),
    ]


def cells_of(record: Round, columns: Sequence[Column]) -> list[str]:
    """A round's cells under these columns."""
    found = {
        "round": str(record.number),
        "clients": _cohort(record),
        "loss": number_text(record.loss),
        **_measures(record.evaluation),
        "up": bytes_text(record.bytes_up),
        "down": bytes_text(record.bytes_down),
        "time": duration_text(record.seconds),
        "machine": duration_text(record.seconds),
        "virtual": "" if record.clock is None else duration_text(record.clock.ended),
    }
    return [found.get(column.heading, "") for column in columns]


def _rounds_table(rounds: Sequence[Round]) -> Fitted:
    table = Fitted(columns_of(rounds), moving=True)
    for record in rounds:
        table.add(cells_of(record, table.columns), "yellow" if record.refused else "")
    return table


def _cohort(record: Round) -> str:
    """Who took part: 8 (1 refused, 1 dropped); on a virtual clock, whose reply was used: 7 (2 late, 1 failed)."""
    lists: dict[str, Sized] = {"refused": record.refused, "dropped": record.dropped}
    ok = len(record.cohort) - len(record.refused)
    if record.clock is not None:
        lists |= {"late": record.clock.late, "failed": record.clock.failed}
        ok = record.clock.used - len(record.refused)
    trouble = [f"{len(who)} {what}" for what, who in lists.items() if who]
    return f"{ok} ({', '.join(trouble)})" if trouble else str(ok)


def _measures(evaluation: Evaluation | None) -> dict[str, str]:
    """The figures of an evaluation that a round shows, by heading."""
    if evaluation is None:
        return {}
    name = evaluation.measure
    bad = "p90" if name == "loss" else "p10"
    figures = {
        "client mean": "own", "validation": "validation", f"test {name}": name, bad: "p10", "worst": "worst",
        "newcomers": "newcomers",
    }  # fmt: skip
    found = {title: evaluation.value(figure) for title, figure in figures.items()}
    if name not in evaluation.overall:
        found[f"test {name}"] = None
    shown = {title: value_text(name, value) for title, value in found.items() if value is not None}
    if (success := evaluation.overall.get(ATTACK_SUCCESS)) is not None:
        shown["attack"] = value_text(ATTACK_SUCCESS, success)
    return shown
