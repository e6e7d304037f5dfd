"""What `fit` shows, and where."""

from __future__ import annotations

import builtins
import io
import sys
import types
from typing import Any

import pytest

import atoll

from .terminal import Terminal


def federation(**settings: Any) -> atoll.Federation:
    data = atoll.data.load("digits").partition("iid", clients=4)
    return atoll.Federation(
        lambda: atoll.models.logistic(64, 10), data, rounds=3, engine="loop", steps=1, **settings
    )


class TestScript:
    @pytest.mark.parametrize("progress", [None, False])
    def test_without_a_terminal_nothing_is_shown(
        self, progress: bool | None, capsys: pytest.CaptureFixture[str]
    ) -> None:
        federation().fit(progress=progress)
        assert capsys.readouterr() == ("", "")

    def test_lines_where_they_are_asked_for(self, capsys: pytest.CaptureFixture[str]) -> None:
        made = federation()
        made.fit(progress=True)
        out, err = capsys.readouterr()
        assert out == ""
        assert "round 3/3" in err and "accuracy" in err
        assert made.keeper.session.log == []  # the screen was of this call

    @pytest.mark.parametrize(("progress", "shown"), [(None, True), (True, True), (False, False)])
    def test_a_terminal(self, progress: bool | None, shown: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        terminal = Terminal(100)
        seen: list[str] = []
        write = terminal.write
        monkeypatch.setattr(terminal, "write", lambda text: seen.append(text) or write(text))
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.delenv("CI", raising=False)
        out = sys.stdout
        federation().fit(progress=progress)
        assert ("FedAvg on digits" in "".join(seen)) == shown
        assert terminal.screen() == ""
        assert sys.stdout is out

    def test_experiments_pass_it_on(self, capsys: pytest.CaptureFixture[str]) -> None:
        atoll.run(clients=4, model="logistic", rounds=2, engine="loop", runs=None, progress=True)
        assert "round 2/2" in capsys.readouterr().err


class ZMQInteractiveShell:
    """What a notebook calls itself."""


class Cell:
    def __init__(self) -> None:
        self.pictures: list[str] = []

    def update(self, picture: str) -> None:
        self.pictures.append(picture)


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> Cell:
    """A notebook, as far as it is seen from here."""
    place = Cell()
    display = types.ModuleType("IPython.display")
    display.HTML = str  # type: ignore[attr-defined]
    display.display = lambda picture, display_id: place.update(picture) or place  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr(builtins, "get_ipython", ZMQInteractiveShell, raising=False)
    return place


class TestNotebook:
    def test_a_table_that_is_written_anew(self, cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        made = federation()
        made.keeper.labels["data"] = "<b>mine</b>"
        made.fit()
        last = cell.pictures[-1]
        assert "<progress value='3' max='3'>" in last
        assert "round 3 of 3" in last
        assert "<th>client mean</th>" in last
        assert last.count("<tr>") == 4
        assert "&lt;b&gt;mine&lt;/b&gt;" in last and "<b>mine</b>" not in last
        assert len(cell.pictures) < 12

    def test_not_where_it_is_not_wanted(self, cell: Cell) -> None:
        federation().fit(progress=False)
        assert cell.pictures == []


def test_a_run_is_short_in_a_prompt() -> None:
    run = federation().fit()
    assert repr(run).startswith("<Run FedAvg on digits, iid: 3 rounds, client mean ")
    assert len(repr(run)) < 100
    assert len(repr(run.rounds[-1])) < 1500
