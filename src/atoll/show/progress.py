"""How a run is shown while it is played: a live table, a table in a notebook, lines, or not at all."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

from rich.console import Console

from atoll.rounds.history import Round
from atoll.runs.events import Event
from atoll.show.table import Lines, LiveTable, Screen, cells_of, columns_of

__all__ = ["Notebook", "on_console", "screen"]

_PACE = 0.25  # seconds between two pictures in a notebook


def screen(progress: bool | None) -> Screen | None:
    """Where a run that a program plays is shown: standard error, or the notebook's cell.

    None shows it where somebody looks, in a terminal or a notebook; True always; False never.
    """
    if progress is False:
        return None
    console = Console(file=sys.stderr, highlight=False)
    if console.is_jupyter:
        return Notebook()
    if progress is None and not _looked_at(console):
        return None
    return on_console(console)


def on_console(console: Console) -> LiveTable | Lines:
    """A live table in a terminal, and elsewhere a line a round."""
    return LiveTable(console) if _looked_at(console) else Lines(console)


def _looked_at(console: Console) -> bool:
    return console.is_terminal and not console.is_dumb_terminal and not os.environ.get("CI")


class Notebook(Screen):
    """The bar and the last rounds as HTML, in a place of the cell that is written anew."""

    def __init__(self) -> None:
        super().__init__()
        from IPython.display import HTML, display  # type: ignore[import-not-found,unused-ignore]

        # Made here, on the thread of the cell: the readers' own thread belongs to none.
        self._html: Callable[[str], Any] = HTML
        self._place = display(HTML("choosing an engine ..."), display_id=True)
        self._drawn = 0.0

    def open(self, folder: Path | None) -> None:
        self._draw()

    def event(self, event: Event) -> None:
        super().event(event)
        if time.monotonic() - self._drawn >= _PACE:
            self._draw()

    def close(self) -> None:
        self._draw()

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        self._place.update(self._html(self.html()))

    def html(self) -> str:
        """The picture as it is now; text is escaped."""
        rounds: list[Round] = list(self.rounds)
        columns = columns_of(rounds)
        head = "".join(f"<th>{escape(column.heading)}</th>" for column in columns)
        cells = ["".join(f"<td>{escape(cell)}</td>" for cell in cells_of(each, columns)) for each in rounds]
        body = "".join(f"<tr>{line}</tr>" for line in cells)
        bar = f"<progress value='{self.done}' max='{self.planned or 1}'></progress>"
        lines = [
            self.detail,
            self.chosen or "choosing an engine ...",
            *([self.privacy] if self.privacy else []),
        ]
        words = f"<small>{'<br>'.join(map(escape, lines))}</small>"
        title = f"<b>{escape(self.title)}</b><br>{words}<br>{bar} round {self.done} of {self.planned}"
        return f"<div>{title}{f'<table><tr>{head}</tr>{body}</table>' if rounds else ''}</div>"
