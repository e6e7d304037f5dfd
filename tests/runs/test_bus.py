import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.errors import RunError
from atoll.runs.bus import Bus
from atoll.runs.events import Event
from atoll.runs.readers import Reader


class Seen(Reader):
    """Remembers what it is told, and on which thread."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.calls: list[Any] = []
        self.threads: set[int] = set()

    def open(self, folder: Path | None) -> None:
        self.calls.append(("open", folder))

    def event(self, event: Event) -> None:
        self.calls.append(event)
        self.threads.add(threading.get_ident())

    def close(self) -> None:
        self.calls.append("close")


class Failing(Seen):
    """Raises an error in one of its methods, at an event of this number."""

    def __init__(self, where: str, error: BaseException, at: int = 0) -> None:
        super().__init__("failing")
        self.where, self.error, self.at = where, error, at

    def open(self, folder: Path | None) -> None:
        super().open(folder)
        if self.where == "open":
            raise self.error

    def event(self, event: Event) -> None:
        super().event(event)
        if self.where == "event" and event["n"] == self.at:
            raise self.error

    def close(self) -> None:
        super().close()
        if self.where == "close":
            raise self.error


class Held(Seen):
    """Does not come back from its first event before it is let go."""

    def __init__(self, name: str = "held") -> None:
        super().__init__(name)
        self.reached, self.free = threading.Event(), threading.Event()

    def event(self, event: Event) -> None:
        self.reached.set()
        assert self.free.wait(30)
        super().event(event)


def numbered(count: int) -> list[Event]:
    return [{"event": "begin", "n": n} for n in range(count)]


def told() -> tuple[list[tuple[str, str]], Any]:
    problems: list[tuple[str, str]] = []
    return problems, lambda where, message: problems.append((where, message))


@settings(max_examples=60, deadline=None)
@given(
    events=st.lists(st.dictionaries(st.text(max_size=5), st.integers(), max_size=3), max_size=200),
    readers=st.integers(0, 4),
    pauses=st.sets(st.integers(0, 199), max_size=2),
)
def test_every_reader_sees_exactly_what_was_sent_in_order(
    events: list[Event], readers: int, pauses: set[int]
) -> None:
    problems, problem = told()
    seen = [Seen() for _ in range(readers)]
    bus = Bus(seen, problem=problem)
    bus.open(Path("somewhere"))
    for place, event in enumerate(events):
        if place in pauses:
            time.sleep(0.001)
        bus.send(event)
    bus.close()
    assert problems == []
    for reader in seen:
        assert reader.calls == [("open", Path("somewhere")), *events, "close"]
        assert reader.threads <= set() if not events else threading.get_ident() not in reader.threads


@pytest.mark.parametrize("where", ["open", "event", "close"])
@pytest.mark.parametrize(
    "error", [OSError("disk full"), SystemExit(3), RunError("no space", hint="free some")]
)
def test_a_failing_reader_is_reported_once_and_the_others_go_on(where: str, error: BaseException) -> None:
    problems, problem = told()
    first, bad, last = Seen(), Failing(where, error, at=3), Seen()
    bus = Bus([first, bad, last], problem=problem)
    bus.open(None)
    for event in numbered(10):
        bus.send(event)
    bus.close()
    assert first.calls == last.calls == [("open", None), *numbered(10), "close"]
    reached = {"open": 0, "event": 4, "close": 10}[where]
    assert bad.calls == [("open", None), *numbered(reached), "close"]
    [(who, message)] = problems
    assert who == "failing"
    assert {
        "OSError": "OSError: disk full",
        "SystemExit": "SystemExit: 3",
        "RunError": "no space (free some)",
    }[type(error).__name__] in message


def test_a_reader_without_a_name_is_called_by_its_class_and_a_problem_may_raise_or_send() -> None:
    told_of: list[tuple[str, str]] = []
    last = Seen()

    def problem(where: str, message: str) -> None:
        told_of.append((where, message))
        bus.send({"event": "problem", "n": -1})
        raise ValueError("the report itself failed")

    bad = Failing("event", ValueError("no"), at=0)
    bad.name = ""
    bus = Bus([bad, last], problem=problem)
    bus.open(None)
    bus.send({"event": "begin", "n": 0})
    deadline = time.monotonic() + 10
    while len(last.calls) < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    bus.close()
    assert told_of == [("Failing", "ValueError: no; it gets no more events of this run")]
    assert [call["n"] for call in last.calls[1:-1]] == [0, -1]


def test_readers_that_do_not_keep_up_are_left_out_and_hold_nobody_up() -> None:
    problems, problem = told()
    slow, other = Held("slow"), Seen("other")
    bus = Bus([slow, other], problem=problem, limit=100)
    bus.open(None)
    bus.send({"event": "begin", "n": 0})
    assert slow.reached.wait(10)
    begun = time.perf_counter()
    for event in numbered(10_000):
        bus.send(event)
    assert time.perf_counter() - begun < 2
    [(who, message)] = problems
    assert who == "slow"
    assert "does not keep up: 100 events are waiting" in message
    assert "nor does other" in message
    slow.free.set()
    bus.close()
    assert len(problems) == 1
    assert slow.calls == [("open", None), {"event": "begin", "n": 0}, "close"]
    assert other.calls == [("open", None), "close"]


def test_closing_gives_up_on_a_stuck_reader() -> None:
    problems, problem = told()
    stuck, other = Held("stuck"), Seen()
    bus = Bus([stuck, other], problem=problem)
    bus.open(None)
    for event in numbered(5):
        bus.send(event)
    assert stuck.reached.wait(10)
    begun = time.perf_counter()
    bus.close(timeout=0.1)
    assert time.perf_counter() - begun < 5
    [(who, message)] = problems
    assert who == "stuck"
    assert message == "still busy 0.1 s after the last event; 4 events were not read"
    stuck.free.set()
    bus.close()
    deadline = time.monotonic() + 10
    while "close" not in other.calls and time.monotonic() < deadline:
        time.sleep(0.001)
    assert other.calls == [("open", None), "close"]  # it ends as soon as it can, without another word
    assert len(problems) == 1


def test_closing_waits_for_a_reader_that_is_only_slow() -> None:
    class Slow(Seen):
        def event(self, event: Event) -> None:
            time.sleep(0.002)
            super().event(event)

    problems, problem = told()
    slow = Slow()
    bus = Bus([slow], problem=problem)
    bus.open(None)
    for event in numbered(100):
        bus.send(event)
    bus.close()
    assert slow.calls == [("open", None), *numbered(100), "close"]
    assert problems == []


def test_sending_before_opening_after_closing_and_without_readers_does_nothing() -> None:
    problems, problem = told()
    seen = Seen()
    bus = Bus([seen], problem=problem)
    bus.send({"event": "begin"})
    bus.open(None)
    bus.close()
    bus.send({"event": "begin"})
    bus.close()
    assert seen.calls == [("open", None), "close"]
    before = threading.active_count()
    nobody = Bus([], problem=problem)
    nobody.open(None)
    nobody.send({"event": "begin"})
    assert threading.active_count() == before
    nobody.close()
    assert problems == []


def test_sending_costs_microseconds() -> None:
    class Busy(Reader):
        def event(self, event: Event) -> None:
            sum(range(100))

    bus = Bus([Busy()], problem=lambda where, message: None)
    bus.open(None)
    events = numbered(20_000)
    begun = time.perf_counter()
    for event in events:
        bus.send(event)
    mean = (time.perf_counter() - begun) / len(events)
    bus.close()
    assert mean < 50e-6


def test_a_program_that_does_not_close_its_bus_ends_and_loses_nothing(tmp_path: Path) -> None:
    file = tmp_path / "seen"
    program = f"""
import time
from pathlib import Path
from atoll.runs.bus import Bus
from atoll.runs.readers import Reader

class Slow(Reader):
    def event(self, event):
        time.sleep(0.01)
        Path({str(file)!r}).open("a").write(str(event["n"]))
    def close(self):
        Path({str(file)!r}).open("a").write("closed")

bus = Bus([Slow()], problem=print)
bus.open(None)
for n in range(9):
    bus.send({{"event": "begin", "n": n}})
raise SystemExit(7)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (7, "", "")
    assert file.read_text() == "012345678closed"
