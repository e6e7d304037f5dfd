"""What may still be released within an epsilon."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from atoll.privacy.accounting import counted, renyi_epsilon, step_for
from atoll.privacy.events import Correlated, Event, tally

__all__ = ["Budget"]


class Budget:
    """Events so far, against the `most` epsilon at `delta` that they may come to (None: any).

    A release is looked at in milliseconds: RDP never says too little, so what RDP allows is allowed. Where it no
    longer does, how many more of the same event there may be is found out once, by bisection with the accountant
    that says least.
    """

    def __init__(self, most: float | None, delta: float, events: Iterable[Event]) -> None:
        self._most, self._delta = most, delta
        self._events = tally(events)
        self._room: tuple[Event, int] | None = None  # an event, and the count up to which it is allowed

    @property
    def events(self) -> Mapping[Event, int]:
        """What happened, and how often."""
        return self._events

    def exceeded(self) -> bool:
        """Whether what happened so far is more than allowed."""
        return not self._within(self._events)

    def allows(self, event: Event) -> bool:
        """Whether this may happen once more (as often as its `count` says)."""
        if self._most is None:
            return True
        after = self._after(event)
        if after == self._events:
            return True  # a stream of correlated noise that was paid for
        ((one, more),) = tally([event]).items()
        if self._room is not None and self._room[0] == one:
            return after[one] <= self._room[1]
        if self._by_rdp(after):
            return True
        if isinstance(event, Correlated):
            return self._within(after)
        self._room = one, self._most_of(one, after[one] - more)
        return after[one] <= self._room[1]

    def add(self, event: Event) -> None:
        """It happened."""
        after = self._after(event)
        if self._room is not None and self._room[0] not in tally([event]) and after != self._events:
            self._room = None
        self._events = after

    def _after(self, event: Event) -> dict[Event, int]:
        after = dict(self._events)
        for one, count in tally([event]).items():
            after[one] = 1 if isinstance(one, Correlated) else after.get(one, 0) + count
        return after

    def _most_of(self, one: Event, have: int) -> int:
        """How often `one` may have happened in all, if it has `have` times by now."""

        def fits(count: int) -> bool:
            return count == have or self._within({**self._events, one: count})

        good, step = have, max(1, have // 8)
        while fits(good + step):
            good, step = good + step, 2 * step
        bad = good + step
        while bad - good > 1:
            middle = (good + bad) // 2
            good, bad = (middle, bad) if fits(middle) else (good, middle)
        return good

    def _by_rdp(self, events: dict[Event, int]) -> bool:
        said = renyi_epsilon(events, self._delta)
        return said is not None and self._most is not None and said <= self._most

    def _within(self, events: dict[Event, int]) -> bool:
        if self._most is None or not events:
            return True
        return (
            self._by_rdp(events) or counted(events, self._delta, step_for(self._most)).epsilon <= self._most
        )
