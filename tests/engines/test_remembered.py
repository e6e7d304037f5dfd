"""What trials have found is kept for the next run, and harms none."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from atoll.engines import Auto, auto, remembered
from atoll.engines.remembered import Found, forget, key, recall, remember
from atoll.engines.trials import Trials
from atoll.machine import Neighbours
from tests.engines.test_auto import federation

FOUND = Found(loop=0.5, alone=0.18, together=0.06, threads=1, capture=0.1, captures=2)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file, in a cache of the test's own."""
    monkeypatch.setenv("ATOLL_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "atoll" / "engines.json"


def test_what_was_found_is_kept_and_forgotten(kept: Path) -> None:
    one, other = key("one"), key("other")
    assert one != other and recall(one) is None
    remember(one, FOUND)
    assert recall(one) == FOUND and recall(other) is None
    forget(other)
    forget(one)
    assert recall(one) is None
    assert [each.name for each in kept.parent.iterdir()] == [
        "engines.json"
    ]  # and nothing half-written beside it


def test_the_oldest_go(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "_MOST", 3)
    for name in ("a", "b", "a", "c", "d"):
        remember(name, FOUND)
    assert list(json.loads(kept.read_text())) == ["a", "c", "d"]


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", '{"x": 1}', '{"x": {"loop": 1}}', '{"x": {"loop": null}}', "\x00", "[" * 100_000,
        json.dumps({"x": {**FOUND.__dict__, "alone": -1.0}}), json.dumps({"x": {**FOUND.__dict__, "loop": "a"}}),
        json.dumps({"x": {**FOUND.__dict__, "threads": float("inf")}}),
    ],
)  # fmt: skip
def test_a_file_that_is_damaged_is_none(text: str, kept: Path) -> None:
    kept.parent.mkdir(parents=True)
    kept.write_text(text)
    assert recall("x") is None
    forget("x")
    remember("x", FOUND)
    assert recall("x") == FOUND


def test_a_place_that_cannot_be_written_is_none(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept.parent.parent.write_text("a file where the folder would be")
    remember("x", FOUND)
    assert recall("x") is None
    monkeypatch.setenv("ATOLL_CACHE", "off")
    monkeypatch.setenv("XDG_CACHE_HOME", str(kept.parent / "elsewhere"))
    remember("x", FOUND)
    assert recall("x") is None and not (kept.parent / "elsewhere").exists()


def test_a_write_that_breaks_off_leaves_what_was_there(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remember("x", FOUND)

    def full(*given: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    remember("y", FOUND)
    assert recall("x") == FOUND and recall("y") is None
    assert [each.name for each in kept.parent.iterdir()] == ["engines.json"]


def played(rounds: int = 10**7, count: int = 1, **given: Any) -> Auto:
    running = federation(rounds, **given)
    try:
        for _ in range(count):
            running.round()
    finally:
        running.engine.close()
    assert isinstance(running.engine, Auto)
    return running.engine


def untried(*given: Any) -> Any:
    raise AssertionError("something was timed")


def test_the_next_run_begins_at_once(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Neighbours, "others", lambda self: 0.0)
    assert "remembered" not in played().describe()
    (name,) = json.loads(kept.read_text())
    remember(name, FOUND)
    monkeypatch.setattr(Trials, "loop", untried)
    text = "(remembered: batched about 60 ms, processes 180 ms a round)"
    assert played().describe() == f"batched, 1 thread {text}"
    remember(name, Found(0.5, 0.06, 0.18, 1, 0.1, 2))
    assert played().describe().startswith("processes, 1 worker (remembered: batched about 180 ms")
    remember(name, Found(0.5, 0.06, 0.18, 1, 10.0, 2))
    assert played(rounds=3).describe() == "loop (remembered: about 500 ms a round; " + auto._OVER + ")"


def test_other_work_is_another_entry(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Neighbours, "others", lambda self: 0.0)
    played()
    played(lr=0.3)  # takes as long
    assert len(json.loads(kept.read_text())) == 1
    played(momentum=0.9)
    assert len(json.loads(kept.read_text())) == 2


@pytest.mark.parametrize("others", [1.0, None])
def test_beside_other_processes_nothing_is_remembered(
    others: float | None, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Neighbours, "others", lambda self: others)
    played()
    assert not kept.exists()


def test_what_is_slower_than_it_said_is_forgotten(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Neighbours, "others", lambda self: 0.0)
    played()
    (name,) = json.loads(kept.read_text())
    played(count=3)
    monkeypatch.setattr(auto, "_SLOW", 1e9)
    remember(name, Found(0.5, 1.0, 1e-9, 1, 0.1, 2))
    played(count=3)
    assert recall(name) is not None
    monkeypatch.setattr(auto, "_SLOW", 2.0)
    played(count=2)
    assert recall(name) is not None
    played(count=3)
    assert recall(name) is None
