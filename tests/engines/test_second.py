"""The choice of an engine is looked at again by what rounds took, and settles."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atoll.callbacks import Callback
from atoll.engines import Auto, Batched, Processes, auto, second
from atoll.engines.second import LEFT, LOOKS, MARGIN, Contender, Second, amount
from atoll.engines.trials import Trials
from atoll.errors import EngineError
from atoll.runs.events import read
from tests.engines.test_auto import federation


class Timed:
    """An engine whose rounds take so many seconds on a clock of its own, one after the other; the last for ever."""

    def __init__(self, name: str, clock: list[float], *seconds: float) -> None:
        self.name, self.clock, self.seconds, self.closed = name, clock, list(seconds), 0

    def run(self, job: Any, memories: Any) -> Any:
        taken = self.seconds.pop(0) if len(self.seconds) > 1 else self.seconds[0]
        self.clock[0] += taken
        if taken < 0:
            memories.put(0, "spoilt")
            raise EngineError("no such step")
        memories.put(0, self.name)
        return self.name, []

    def close(self) -> None:
        self.closed += 1


class Kept(dict[int, Any]):
    put = dict.__setitem__


ENOUGH = 1000


def names(monkeypatch: pytest.MonkeyPatch, now: Any, other: Any, said: float | None, missing: float = 0.0,
          count: int = 30, rounds: int = ENOUGH) -> tuple[list[str], Second, Kept]:  # fmt: skip
    """Which engine played each round."""
    clock, memories = [0.0], Kept()
    one, two = Timed("first", clock, *now), Timed("other", clock, *other)
    monkeypatch.setattr(second, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(second, "amount", lambda job, data: 1)
    looked = Second(Contender(one, 1.0), Contender(two, said, missing), None, "train", rounds)  # type: ignore[arg-type]
    played = []
    for number in range(1, count + 1):
        job: Any = SimpleNamespace(round=number, work=SimpleNamespace(program="train"))
        played.append(looked.run(job, memories)[0])
        assert memories[0] == played[-1]
    return played, looked, memories  # type: ignore[return-value]


def test_what_is_faster_in_rounds_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    played, looked, _ = names(monkeypatch, [2.0], [1.0], said=1.0)
    assert played == ["first"] * 3 + ["other"] * 27
    assert looked.state == "over" and looked.reason == "in rounds: first 2 s, other 1 s"
    assert looked.other.engine.closed == 1  # type: ignore[attr-defined]


def test_what_is_slower_than_it_promised_plays_one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    played, looked, _ = names(monkeypatch, [2.0], [3.0], said=1.0)
    assert played == ["first"] * 3 + ["other"] + ["first"] * 26
    assert looked.state == "over" and looked.reason == "in rounds: first 2 s, other 3 s"


def test_what_is_nearly_as_fast_plays_two(monkeypatch: pytest.MonkeyPatch) -> None:
    played, *_ = names(monkeypatch, [2.0], [2.1], said=1.0)
    assert played == ["first"] * 3 + ["other"] * 2 + ["first"] * 25


def test_what_promises_little_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    played, looked, _ = names(monkeypatch, [2.0], [0.1], said=2 * MARGIN + 1e-9)
    assert set(played) == {"first"} and looked.state == "over" and not looked.reason


def test_the_fastest_round_counts_and_a_slow_machine_is_looked_at_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    played, *_ = names(monkeypatch, [9.0, 1.0, 9.0], [0.1], said=1.0)
    assert set(played) == {"first"}
    monkeypatch.setattr(second, "LOOKS", (LOOKS[0], 8))
    played, *_ = names(monkeypatch, [2.0], [0.1], said=0.01, missing=1e9)
    assert set(played) == {"first"}  # captures that cost more than the rounds to come


def test_what_proves_slower_goes_back_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    played, looked, _ = names(monkeypatch, [2.0], [1.0, 1.0, 5.0], said=1.0)
    assert played[-1] == "other"  # its fastest round is still the fastest
    played, looked, _ = names(monkeypatch, [2.0, 2.0, 2.0, 1.0], [1.9, 1.9, 5.0], said=1.0)
    assert played[-1] == "other" and looked.state == "over"


def test_the_end_of_a_run_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    played, *_ = names(monkeypatch, [2.0], [1.0], said=1.0, count=12, rounds=LOOKS[0] + LEFT - 1)
    assert set(played) == {"first"}
    played, *_ = names(monkeypatch, [2.0], [1.0], said=1.0, count=12, rounds=LOOKS[0] + LEFT)
    assert "other" in played


def test_what_was_never_tried_is_where_that_is_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    left = ENOUGH - LOOKS[0]
    assert "other" in names(monkeypatch, [2.0], [1.0], None, second.SHARE * left * 2.0 - 1)[0]
    assert "other" not in names(monkeypatch, [2.0], [1.0], None, second.SHARE * left * 2.0 + 1)[0]


def test_what_cannot_leaves_the_round_to_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    played, looked, memories = names(monkeypatch, [2.0], [-1.0], said=1.0)
    assert set(played) == {"first"} and memories[0] == "first"
    assert looked.state == "over" and looked.reason == "other cannot: no such step"


@given(
    now=st.lists(st.floats(0.1, 10), min_size=30, max_size=30),
    other=st.lists(st.floats(0.1, 10), min_size=30, max_size=30),
    said=st.none() | st.floats(0.1, 10),
)
def test_it_settles(now: list[float], other: list[float], said: float | None) -> None:
    with pytest.MonkeyPatch.context() as patch:
        played, looked, _ = names(patch, now, other, said)
    changes = sum(a != b for a, b in pairwise(played))
    assert changes <= 2 and looked.state == "over"
    assert len(set(played[LOOKS[1] + 7 :])) == 1


def test_steps_are_counted_as_they_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    running, seen = federation(3), []
    run = Auto.run

    def spied(self: Auto, job: Any, memories: Any) -> Any:
        seen.append((amount(job, self.data), self.trials.steps(job)))
        return run(self, job, memories)

    monkeypatch.setattr(Auto, "run", spied)
    running.round()
    running.engine.close()
    assert seen == [(8, 8)]


class Names(Callback):
    """What settled() says once a round counts."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def on_round_end(self, federation: Any, record: Any) -> None:
        self.names.append(federation.engine.settled()[0])


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The engines that play whole rounds, trials left out."""
    found: list[str] = []

    def spied(run: Callable[..., Any]) -> Callable[..., Any]:
        def spy(self: Any, job: Any, memories: Any) -> Any:
            result = run(self, job, memories)
            if job.limit is None:
                found.append(self.name)
            return result

        return spy

    for kind in (Batched, Processes):
        monkeypatch.setattr(kind, "run", spied(kind.run))
    return found


@pytest.mark.parametrize("first", ["batched", "processes"])
def test_a_change_is_told_and_named_by_checkpoints(
    first: str, played: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "_CAPTURE", 0.0)  # any capture pays
    monkeypatch.setattr(auto, "decide", lambda *given, **more: (first, "as told"))
    for name in ("_SHARE", "_TINY_SHARE", "_WON", "_ROUNDS"):
        monkeypatch.setattr(auto, name, 1e9)  # and so does any trial
    monkeypatch.setattr(Trials, "widths", lambda *given: 0)  # nothing is missing
    monkeypatch.setattr(Trials, "single", lambda *given: (1e-9, 1e-9, 1e-9))
    monkeypatch.setattr(Trials, "crew", lambda *given: 1e-9)
    monkeypatch.setattr(Trials, "batched", lambda *given: (1e-9, ""))
    seen = Names()
    torch.manual_seed(0)
    running = federation(14, callbacks=[seen], runs=tmp_path)
    run = running.fit()
    other = "processes" if first == "batched" else "batched"
    assert played[:5] == [first] * 3 + [other] * 2
    assert seen.names[:-1] == played[1:]  # what a checkpoint names plays the next round
    assert running.folder is not None
    told = [each for each in read(running.folder.events_file).events if each["event"] == "engine"]
    since = {each["round"]: each["name"] for each in told}
    assert since[1] == first and since[4] == other
    name = ""
    for number, player in enumerate(played, 1):
        name = since.get(number, name)
        assert name == player
    assert "a trial said 0 s of this" in told[1]["text"] and "(in rounds: batched " in told[2]["text"]
    torch.manual_seed(0)
    plain = federation(14, engine="loop").fit().model.state_dict()
    for key, value in run.model.state_dict().items():
        torch.testing.assert_close(value, plain[key])
