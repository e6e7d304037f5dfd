"""The queue of events: by time, then by key, and never back."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.clock import Queue

events = st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0, 1.5, 7.25]), st.integers(0, 4)))


@settings(deadline=None, max_examples=60)
@given(events)
def test_it_is_a_stable_sort_cut_into_moments(given: list[tuple[float, int]]) -> None:
    queue = Queue[int]()
    for at, (time, key) in enumerate(given):
        queue.push(time, key, at)
    due = sorted((time, key, at) for at, (time, key) in enumerate(given))
    assert [tuple(event) for event in queue] == due
    assert len(queue) == len(given)
    found = []
    while queue:
        moment = queue.next
        together = queue.pop()
        assert {event.time for event in together} == {moment} == {queue.now}
        assert queue.next > moment
        found += together
    assert [tuple(event) for event in found] == due


def test_what_is_pushed_while_it_runs_finds_its_place() -> None:
    queue = Queue[str]()
    queue.push(1.0, 0, "a")
    queue.push(3.0, 0, "c")
    assert [each.what for each in queue.pop()] == ["a"]
    queue.push(1.0, 0, "again")  # the same moment is not the past
    queue.push(2.0, 0, "b")
    assert [queue.pop()[0].what for _ in range(3)] == ["again", "b", "c"]


def test_things_that_cannot_be_compared_never_are() -> None:
    queue = Queue[dict[str, int]]()
    queue.push(1.0, 2, {"a": 1})
    queue.push(1.0, 2, {"b": 2})
    assert [each.what for each in queue.pop()] == [{"a": 1}, {"b": 2}]


def test_there_is_no_way_back() -> None:
    queue = Queue[None](now=5.0)
    for time in (4.999, math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match=r"and the clock stands at 5\.0 s"):
            queue.push(time, 0, None)
    assert queue.next == math.inf
    with pytest.raises(IndexError, match="no event"):
        queue.pop()
