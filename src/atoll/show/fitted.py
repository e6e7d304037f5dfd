"""Tables that leave out columns where the terminal is too narrow: a figure is shown whole, or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

__all__ = ["Column", "Fitted", "live"]

_GAP = 2  # cells between two columns, and at both ends together
# What a figure has at least in a table drawn anew, or columns would come and go with its digits:
_FIGURE = 7


@dataclass(frozen=True)
class Column:
    """A column: its heading, and how soon it goes.

    `rank` is 0 for what is always shown; of the others, the greatest goes first. `text` is words, set to the left, and
    folded rather than cut where even the first columns are too wide. The others are figures.
    """

    heading: str
    rank: int = 0
    text: bool = False
    style: str = ""


@dataclass
class Fitted:
    """Rows under columns, as many of these as there is room for; a line under the table names those left out.

    A `moving` one is drawn anew as rows come: it is as wide as the terminal, and has no such line.
    """

    columns: Sequence[Column]
    moving: bool = False
    rows: list[tuple[list[Text], str]] = field(default_factory=list)

    def add(self, cells: Iterable[str | Text], style: str = "") -> None:
        """A row, with a cell a column."""
        self.rows.append(([each if isinstance(each, Text) else Text(each) for each in cells], style))

    def shown(self, width: int) -> list[int]:
        """The places of the columns that there is room for."""
        wide = [self._width(place) + _GAP for place in range(len(self.columns))]
        by_rank = sorted(range(len(wide)), key=lambda place: (self.columns[place].rank, place))
        room, kept = width, []
        for place in by_rank:
            if self.columns[place].rank == 0 or wide[place] <= room:
                kept.append(place)
                room -= wide[place]
        return sorted(kept)

    def _width(self, place: int) -> int:
        column = self.columns[place]
        cells = [cell_len(column.heading), *(cells[place].cell_len for cells, _ in self.rows)]
        return max(cells) if column.text or not self.moving else max(_FIGURE, *cells)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        places = self.shown(options.max_width)
        table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, expand=self.moving)
        for place in places:
            column = self.columns[place]
            justify: Any = "left" if column.text else "right"
            table.add_column(
                column.heading,
                style=column.style,
                justify=justify,
                no_wrap=not column.text,
                overflow="fold",
                min_width=None if column.text else self._width(place),
            )
        for cells, style in self.rows:
            table.add_row(*(cells[place] for place in places), style=style)
        yield table
        gone = [each.heading for place, each in enumerate(self.columns) if place not in places]
        if gone and not self.moving:
            yield Text(f"no room here for: {', '.join(gone)}", "dim")


def live(console: Console, view: Any, **options: Any) -> Live:
    """What is drawn anew on the screen until it is stopped, and then is gone.

    It ends in an empty line: the ^C that a terminal writes at the cursor stays in that line, and what erases the
    picture counts its lines.
    """

    def whole() -> RenderableType:
        return _Ended(view())

    return Live(console=console, get_renderable=whole, refresh_per_second=4, transient=True, **options)


@dataclass(frozen=True)
class _Ended:
    """A picture and an empty line."""

    picture: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.picture
        yield Text()
