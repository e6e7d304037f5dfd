"""A run that is no federation, kept by a session: killed, resumed, listed and shown."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from atoll import seeds
from atoll.errors import ConfigError
from atoll.runs.checkpoint import list_checkpoints
from atoll.runs.events import kinds
from atoll.runs.folder import RunFolder
from atoll.runs.readers import Reader
from atoll.runs.serve import Dash
from atoll.runs.session import Session
from atoll.runs.snapshot import Snapshot
from atoll.tensors import Record

from .browser import BROWSER, DRIVER, Page, browser


class Counter:
    """Adds a number every round, which follows from the seed and the round."""

    def __init__(self, runs: Path | None, seed: int = 3, rounds: int = 12, pause: float = 0.0, **kept: Any):
        self.seed, self.rounds, self.pause = seed, rounds, pause
        self.number, self.total = 0, torch.zeros((), dtype=torch.int64)
        self.session = Session(runs, checkpoint=4, **kept)

    def opening(self) -> list[kinds.Written]:
        facts: dict[str, Any] = {"method": "counter", "seed": self.seed, "rounds": self.rounds}
        return [kinds.Start(**facts, measure="loss", config=facts)]

    def snapshot(self) -> Snapshot:
        return Snapshot(self.number, {"state": Record({"total": self.total})})

    def resume(self) -> Counter:
        found, _ = self.session.resume("last", {"seed": self.seed})
        self.number, self.total = found.round, found.records["state"]["total"]
        return self

    def fit(self) -> Counter:
        save = lambda path: save_file({"total": self.total}, path)  # noqa: E731
        plan: dict[str, Any] = {"name": "counter", "rounds": self.rounds, "identity": {"seed": self.seed}}
        with self.session.written(self.opening, self.snapshot(), **plan, model=save):
            while self.number < self.rounds:
                time.sleep(self.pause)
                self.number += 1
                self.total = self.total + int(seeds.rng(self.seed, "counter", self.number).integers(1000))
                judged = kinds.Evaluation(overall={"loss": 1000 / (1 + int(self.total))})
                self.session.commit(
                    partial(kinds.Round, round=self.number, seconds=self.pause, evaluation=judged),
                    self.snapshot(),
                    last=self.number == self.rounds,
                )
            facts: dict[str, Any] = {"rounds": self.number, "seconds": self.session.seconds}
            self.session.end(kinds.Result(reason="rounds", method="counter", **facts))
        return self


def left(runs: Path) -> tuple[bytes, bytes, list[tuple[int, float]]]:
    """What a run in this place came to: its last state, its model and its curve."""
    folder = RunFolder.find("last", runs)
    rounds = [each for each in folder.log().events if each["event"] == "round"]
    curve = [(each["round"], each["evaluation"]["overall"]["loss"]) for each in rounds]
    last = list_checkpoints(folder.path)[-1][1]
    return (last / "state.safetensors").read_bytes(), (folder.path / "model.safetensors").read_bytes(), curve


def kinds_of(folder: RunFolder) -> list[str]:
    return [each["event"] for each in folder.log().events]


def test_killed_and_resumed_it_ends_as_the_undisturbed_run_does(tmp_path: Path) -> None:
    Counter(tmp_path / "whole").fit()
    place = tmp_path / "killed"
    program = f"from tests.runs.test_session import *; Counter(Path({str(place)!r}), pause=0.1).fit()"
    process = subprocess.Popen([sys.executable, "-c", program])
    try:
        deadline = time.monotonic() + 60
        while not any(b'"round":6' in file.read_bytes() for file in place.glob("*/events.jsonl")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    again = Counter(place)
    with pytest.raises(ConfigError, match="seed is 3 there, 4 here"):
        Counter(place, seed=4).resume()
    assert again.resume().number == 4
    again.fit()
    assert left(place) == left(tmp_path / "whole")
    assert again.session.folder is not None
    assert kinds_of(again.session.folder).count("resume") == 1
    told = again.session.folder.log().events[0]
    assert told["method"] == "counter" and "clients" not in told and told["versions"]


def test_an_error_is_put_away(tmp_path: Path) -> None:
    class Fails(Counter):
        def snapshot(self) -> Snapshot:
            if self.number == 7:
                raise ZeroDivisionError("seven")
            return super().snapshot()

    with pytest.raises(ZeroDivisionError):
        Fails(tmp_path).fit()
    folder = RunFolder.find("last", tmp_path)
    last = folder.log().events[-1]
    assert (last["event"], last["kind"], last["message"], last["round"]) == (
        "error", "ZeroDivisionError", "seven", 6,
    )  # fmt: skip
    assert [number for number, _ in list_checkpoints(folder.path)][-1] == 6
    assert not folder.held()
    Counter(tmp_path).resume().fit()
    Counter(tmp_path / "whole").fit()
    assert left(tmp_path)[:2] == left(tmp_path / "whole")[:2]


def test_the_best_checkpoint_stays(tmp_path: Path) -> None:
    """The loss falls with every round, so the best is the last; of a rising one it is the first."""

    class Rising(Counter):
        def fit(self) -> Counter:
            with self.session.written(self.opening, self.snapshot(), name="rising", rounds=4, identity={}):
                for number in range(1, 5):
                    self.number = number
                    spread = dict.fromkeys(
                        ("mean", "std", "min", "p10", "median", "p90", "max"), float(number)
                    )
                    own: Mapping[str, Any] = {"loss": {**spread, "pooled": 1.0, "clients": 2}}
                    judged = kinds.Evaluation(overall={"loss": -float(number)}, personal=own)
                    self.session.commit(
                        partial(kinds.Round, round=number, seconds=0.0, evaluation=judged),
                        self.snapshot(),
                        last=True,
                    )
            return self

    made = Rising(tmp_path, keep="best").fit()
    assert made.session.folder is not None
    assert [number for number, _ in list_checkpoints(made.session.folder.path)] == [1, 4]


class Hears(Reader):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def event(self, event: dict[str, Any]) -> None:
        self.heard.append(event["event"])


def test_the_last_state_that_was_evaluated_is_kept_beside_the_state(tmp_path: Path) -> None:
    def at(number: int) -> Snapshot:
        return Snapshot(number, {"state": Record({"total": torch.tensor(number)})})

    def play(session: Session, numbers: range) -> None:
        plan: dict[str, Any] = {"name": "counter", "rounds": 9, "identity": {"seed": 3}}
        with session.written(Counter(None).opening, at(numbers[0] - 1), **plan):
            for number in numbers:
                judged = kinds.Evaluation(overall={"loss": 1.0}) if number in (2, 8) else None
                session.commit(partial(kinds.Round, round=number, seconds=0.0, evaluation=judged), at(number))

    def resumed() -> tuple[Session, Mapping[str, Record]]:
        session = Session(tmp_path, checkpoint=4)
        return session, session.resume("last", {"seed": 3})[0].records

    play(Session(tmp_path, checkpoint=4), range(1, 6))
    session, records = resumed()
    assert {name: int(record["total"]) for name, record in records.items()} == {"state": 4, "sound": 2}
    assert session.sound is records["sound"]
    play(session, range(5, 10))
    session, records = resumed()
    assert {name: int(record["total"]) for name, record in records.items()} == {"state": 8}
    assert session.sound is records["state"]
    assert session.folder is not None
    session.folder.release()


def test_whoever_hears_a_run_that_goes_on_is_told_how_it_began(tmp_path: Path) -> None:
    Counter(tmp_path, rounds=4).fit()
    reader = Hears()
    Counter(tmp_path, rounds=5, log=[reader]).resume().fit()
    assert reader.heard == ["start", "resume", "round", "checkpoint", "result"]


def test_without_a_folder_events_are_heard_and_kept() -> None:
    reader = Hears()
    made = Counter(None, rounds=3, log=[reader]).fit()
    assert reader.heard == ["start", "round", "round", "round", "result"]
    rounds = [kinds.Round(round=1, seconds=0.0)]
    assert [each["event"] for each in made.session.events(made.opening, rounds)] == [
        "start",
        "round",
        "result",
    ]
    assert not made.session.can_resume


def test_it_is_listed_and_shown(tmp_path: Path) -> None:
    Counter(tmp_path).fit()
    name = RunFolder.find("last", tmp_path).name

    def atoll(*arguments: str) -> str:
        command = [sys.executable, "-m", "atoll.cli", *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "160"}
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    listed = atoll("ls", str(tmp_path))
    assert name in listed and "counter" in listed and "12/12" in listed and "finished" in listed
    found = json.loads(atoll("ls", str(tmp_path), "--json"))
    assert (found["status"], found["round"], found["rounds"], found["data"]) == ("finished", 12, 12, None)
    assert found["score"] == left(tmp_path)[2][-1][1]
    assert "counter" in atoll("show", name, "--runs", str(tmp_path))
    assert "round 12" in atoll("log", name, "--runs", str(tmp_path))


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    if not BROWSER or not DRIVER:
        pytest.skip("there is no browser here: apt-get install chromium chromium-driver")
    with browser() as found:
        yield found


def test_the_page_shows_what_there_is(page: Page, tmp_path: Path) -> None:
    Counter(tmp_path).fit()
    folder = RunFolder.find("last", tmp_path)
    page.open((folder.path / "report.html").as_uri())
    page.ready()
    assert page.text("#run-title") == "counter"
    assert page.text("#run-round") == "round 12 of 12"
    assert page.text("#run-status") == "finished"
    assert "Test loss" in page.text("#run-kpis")
    assert page.empty(["learning", "settings"]) == []
    shown = page.js(
        "return [...document.querySelectorAll('#view-run .panel')].filter((e) => !e.hidden).map((e) => e.id)"
    )
    assert shown == ["learning", "problems", "settings"]
    words = page.text("main")
    assert "undefined" not in words and "NaN" not in words and "null" not in words
    assert page.errors() == []


def test_the_live_page_shows_it_too(page: Page, tmp_path: Path) -> None:
    Counter(tmp_path).fit()
    name = RunFolder.find("last", tmp_path).name
    with Dash(tmp_path) as live:
        page.open(live.url)
        page.until(lambda: name in page.text("#list-table"))
        page.open(f"{live.url}#run={name}")
        page.until(lambda: page.text("#run-round") == "round 12 of 12")
        assert page.errors() == []


def test_a_round_that_nobody_hears_of_is_not_put_into_words(tmp_path: Path) -> None:
    asked: list[int] = []

    def event(number: int) -> kinds.Round:
        asked.append(number)
        return kinds.Round(round=number, seconds=0.0)

    def play(session: Session, number: int) -> None:
        counter = Counter(None)
        with session.written(counter.opening, counter.snapshot(), name="counter", rounds=3, identity={}):
            counter.number = number
            session.commit(partial(event, number), counter.snapshot())
            assert session.number == number

    play(Session(None), 1)
    assert asked == []
    play(Session(None, log=[Hears()]), 2)
    play(Session(tmp_path), 3)
    assert asked == [2, 3]
