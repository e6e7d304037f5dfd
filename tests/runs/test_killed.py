"""Killed at any moment, a run goes on and ends as the undisturbed one does."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from atoll.runs.folder import RunFolder
from tests.runs.test_resume import ENGINES, federation

FEW = (("scaffold", "loop"), ("scaffold", "batched"), ("fedadam", "processes"))
"""Each engine, a server with a state of its own, and memories in two engines; the rest is for the long run."""


@pytest.mark.parametrize(
    ("method", "engine"),
    [
        pytest.param(method, engine, marks=() if (method, engine) in FEW else pytest.mark.slow)
        for method in ("fedavg", "scaffold", "fedadam")
        for engine in ENGINES
    ],
)
def test_killed_at_random_moments(method: str, engine: str, tmp_path: Path) -> None:
    """Runs that are killed again and again, at random moments of rounds and checkpoints, lose nothing."""
    assert _survives(method, engine, tmp_path, runs=3) >= 3


IN_THE_AIR = {
    "kept": {"devices": "lognormal:1.5", "deadline": "share:0.6", "late": "keep", "choose": "oort"},
    "buffered": {
        "devices": "lognormal:1.5 + failing:0.1 + markov:30,10",
        "pace": "buffered:2",
        "concurrency": 5,
        "exclude": "2@2",
    },
    "paced": {
        "devices": "lognormal:1",
        "pace": "buffered:2",
        "concurrency": 5,
        "epochs": 3,
        "adaptive": "compass + drift",
    },
}


@pytest.mark.parametrize(
    ("name", "engine"),
    [
        pytest.param(
            name, engine, marks=() if (name, engine) == ("buffered", "batched") else pytest.mark.slow
        )
        for name in IN_THE_AIR
        for engine in ENGINES
    ],
)
def test_killed_while_orders_are_in_the_air(name: str, engine: str, tmp_path: Path) -> None:
    """On the virtual clock, replies that are under way, late, or wait for others come as if nothing had happened."""
    runs = 10 if engine != "batched" or name != "buffered" else 3
    assert _survives("scaffold", engine, tmp_path, runs=runs, **IN_THE_AIR[name]) >= runs


def _survives(method: str, engine: str, tmp_path: Path, runs: int, **further: Any) -> int:
    """Play so many runs, each killed twice, against one that is not disturbed; how often one was killed."""
    plan: dict[str, Any] = {
        "rounds": 20,
        "checkpoint": 1,
        "keep": "last",
        "workers": 1,  # a fork has no OpenMP threads
        "equal": True,  # one form of step to capture, in every child
        **further,
    }
    whole = federation(method, engine, runs=tmp_path / "whole", **plan).fit()
    assert whole.folder is not None
    want = (whole.folder.path / "model.safetensors").read_bytes()
    clocks = [e.get("clock") for e in whole.folder.log().events if e["event"] == "round"]
    moments = random.Random(f"{method} {engine}")
    kills = 0
    for number in range(runs):
        place = tmp_path / f"killed{number}"
        for stop in (
            moments.randint(6, 30),
            moments.randint(31, 60),
        ):  # lines of events, three or four a round
            pid = _child(method, engine, place, plan)
            deadline = time.monotonic() + 60
            while _lines(place) < stop and time.monotonic() < deadline and not _over(pid):
                time.sleep(0.001)
            time.sleep(moments.uniform(0.0, 0.02))
            if not _over(pid):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                kills += 1
        if kills:
            os.waitpid(_child(method, engine, place, plan), 0)
        folder = RunFolder.find("last", place)
        assert (folder.path / "model.safetensors").read_bytes() == want
        log = folder.log()
        assert [e["round"] for e in log.events if e["event"] == "round"] == list(range(1, 21))
        assert [e.get("clock") for e in log.events if e["event"] == "round"] == clocks
        assert log.events[-1]["event"] == "result"
    return kills


def _child(method: str, engine: str, place: Path, plan: dict[str, Any]) -> int:
    """A process that plays the run there, or goes on with it."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        made = federation(method, "auto" if _lines(place) else engine, runs=place, **plan)
        (made.resume() if _lines(place) else made).fit()
        code = 0
    finally:
        os._exit(code)


_ended: set[int] = set()


def _over(pid: int) -> bool:
    """Whether the process has ended by itself; it must have ended well."""
    if pid not in _ended:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            assert status == 0
            _ended.add(pid)
    return pid in _ended


def _lines(place: Path) -> int:
    """Lines in the events of the runs in a place."""
    return sum(file.read_bytes().count(b"\n") for file in place.glob("*/events.jsonl"))
