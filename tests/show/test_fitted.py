"""Tables that leave out columns, and what is drawn anew on a screen."""

from __future__ import annotations

import io
import itertools

import pytest
from rich.console import Console
from rich.text import Text

from atoll.show.fitted import Column, Fitted, live

from .terminal import Terminal

NAME = "2026-11-21_140428-fedavg-4367"


def table() -> Fitted:
    columns = [
        Column("run", text=True), Column("round"), Column("accuracy"), Column("worst", 1), Column("up", 3),
        Column("partition", 2, text=True),
    ]  # fmt: skip
    made = Fitted(columns)
    made.add([NAME, "100/100", "100.0 %", Text("87.5 %"), "1.25 MB", "dirichlet:0.3"])
    return made


def printed(width: int) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(table())
    return stream.getvalue()


@pytest.mark.parametrize(
    ("width", "gone"),
    [(200, []), (80, ["up"]), (70, ["partition"]), (60, ["up", "partition"]), (50, ["worst", "up", "partition"])],
)  # fmt: skip
def test_columns_go_and_what_stays_is_whole(width: int, gone: list[str]) -> None:
    text = printed(width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    figures = {"worst": "87.5 %", "up": "1.25 MB", "partition": "dirichlet:0.3"}
    assert [name for name in figures if figures[name] not in text] == gone
    assert "100/100" in text and "100.0 %" in text
    assert (f"no room here for: {', '.join(gone)}" in text) == bool(gone)
    if width >= 60:
        assert NAME in text


def test_a_terminal_too_narrow_for_the_name_folds_it() -> None:
    text = printed(40)
    assert "…" not in text
    folded = [line[1:].split("  ")[0].strip() for line in text.splitlines()]
    assert any(first + second == NAME for first, second in itertools.pairwise(folded))
    assert "100.0 %" in text


@pytest.mark.parametrize("echo", ["", "^C"])
def test_a_live_picture_leaves_nothing_behind(echo: str) -> None:
    terminal = Terminal(40)
    console = Console(file=terminal, force_terminal=True, width=40, height=20, color_system=None)
    shown = live(console, lambda: Text("\n".join(["=" * 40] * 5)))
    shown.start(refresh=True)
    assert "=" * 40 in terminal.screen()
    terminal.write(echo)  # the terminal itself writes what is typed at the cursor
    shown.stop()
    assert terminal.screen() == ""
