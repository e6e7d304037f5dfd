"""Events of the virtual clock, earliest first."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from typing import Generic, NamedTuple, TypeVar

__all__ = ["Event", "Queue"]

T = TypeVar("T")


class Event(NamedTuple, Generic[T]):
    """Something that happens at a moment (seconds); `key` puts those of one moment in order: clients, mostly."""

    time: float
    key: int
    what: T


class Queue(Generic[T]):
    """A heap of events that only goes forward.

    >>> queue = Queue[str]()
    >>> queue.push(2.0, 7, "late"), queue.push(1.0, 5, "b"), queue.push(1.0, 3, "a")
    (None, None, None)
    >>> [event.what for event in queue.pop()], queue.now, queue.next
    (['a', 'b'], 1.0, 2.0)
    """

    def __init__(self, now: float = 0.0) -> None:
        self.now = now
        """The moment of what was popped last: nothing can be pushed before it."""
        self._heap: list[tuple[float, int, int, T]] = []
        self._pushed = 0

    def __len__(self) -> int:
        return len(self._heap)

    def __iter__(self) -> Iterator[Event[T]]:
        """All that is to come, in its order; nothing is popped."""
        return (
            Event(time, key, what) for time, key, _, what in sorted(self._heap, key=lambda each: each[:3])
        )

    @property
    def next(self) -> float:
        """When the next event is; inf without one."""
        return self._heap[0][0] if self._heap else math.inf

    def push(self, time: float, key: int, what: T) -> None:
        """Something is to happen. Raises ValueError for a time that has passed, or is not finite."""
        if not (self.now <= time < math.inf):
            raise ValueError(f"an event at {time} s, and the clock stands at {self.now} s")
        heapq.heappush(self._heap, (time, key, self._pushed, what))
        self._pushed += 1

    def pop(self) -> list[Event[T]]:
        """All events of the earliest moment, by their keys, then as they were pushed; the clock moves there.

        Raises IndexError where there is none.
        """
        if not self._heap:
            raise IndexError("no event is to come")
        self.now = self._heap[0][0]
        found = []
        while self._heap and self._heap[0][0] == self.now:
            time, key, _, what = heapq.heappop(self._heap)
            found.append(Event(time, key, what))
        return found
