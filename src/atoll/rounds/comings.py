"""Who comes and goes at virtual times: named clients, drawn ones, and a stream of them that never ends."""

from __future__ import annotations

import heapq
import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atoll import seeds
from atoll.clock import draws

__all__ = ["Comings", "Rate"]

Clients = NDArray[np.int64]
Numbers = NDArray[np.float64]

_BLOCK = 1024


@dataclass(frozen=True)
class Rate:
    """A Poisson stream: so many clients a virtual second, up to `most` of them (or a share of all)."""

    rate: float
    most: int | float | None = None


class Comings:
    """When clients are there on the virtual clock, in flat arrays over the population: 16 bytes a client.

    Args:
        joins: client -> virtual second from which on it is there; `leaves` likewise, from which on it is gone.
        coming: a stream of clients of the `pool` that were not there at the start, in an order that is drawn; `going`
            a stream of departures, each of one that is drawn from those of the pool that are there then.

    The gaps of a stream are exponential. They and whom they concern have the address (seed, purpose, which event), and
    events are worked out up to the time that somebody asks about, so that nothing depends on what was asked before.
    """

    def __init__(
        self,
        clients: int,
        seed: int,
        joins: Mapping[int, float],
        leaves: Mapping[int, float],
        coming: Rate | None = None,
        going: Rate | None = None,
        pool: Clients | None = None,
    ) -> None:
        self.comes, self.goes = np.zeros(clients), np.full(clients, math.inf)
        for client, at in joins.items():
            self.comes[client] = at
        for client, at in leaves.items():
            self.goes[client] = at
        self._fixed = sorted({*joins.values(), *leaves.values()})
        self._streams: list[tuple[float, str]] = []
        self._gaps = {
            name: _Gaps(seed, name, rate) for name, rate in (("joins", coming), ("leaves", going)) if rate
        }
        self._events: list[float] = []
        pool = np.zeros(0, np.int64) if pool is None else pool
        self._waiting = pool[:0]
        if coming is not None:
            many = _count(coming.most, clients, len(pool))
            self._waiting = seeds.rng(seed, "joins stream").permutation(pool)[:many].astype(np.int64)
            self.comes[self._waiting] = math.inf
            self._gaps["joins"].most = many
        if going is not None:
            here = np.setdiff1d(pool, self._waiting)
            self._here = np.concatenate([here, np.zeros(len(self._waiting), np.int64)])
            self._many = len(here)  # the first so many are there
            self._gaps["leaves"].most = _count(going.most, clients, len(pool))
        for name, gaps in self._gaps.items():
            self._await(name, gaps)

    # --- questions: all of them about times up to now ---------------------------------------------------------

    def there(self, time: float) -> NDArray[np.bool_]:
        """Who is there at this time, [clients]."""
        self._until(time)
        return (self.comes <= time) & (time < self.goes)

    def era(self, time: float) -> tuple[int, int]:
        """Changes up to this time: while it stays the same, so does who is there."""
        self._until(time)
        return bisect_right(self._fixed, time), bisect_right(self._events, time)

    def left(self, since: float, until: float) -> list[int]:
        """Who has left after the one time and up to the other, ascending."""
        if self.era(since) == self.era(until):
            return []
        return np.flatnonzero((self.goes > since) & (self.goes <= until)).tolist()

    def came(self, since: float, until: float) -> list[int]:
        """Who has come after the one time and up to the other, ascending."""
        if self.era(since) == self.era(until):
            return []
        return np.flatnonzero((self.comes > since) & (self.comes <= until)).tolist()

    def departs(self, clients: Clients, until: float) -> Numbers:
        """When each of these leaves, as far as it does so up to that time; inf otherwise."""
        self._until(until)
        return np.where(self.goes[clients] <= until, self.goes[clients], math.inf)

    def next(self, time: float) -> float:
        """When the next one comes; inf: nobody will."""
        self._until(time)
        soonest = float(np.min(self.comes[self.comes > time], initial=math.inf))
        while self._coming() and self._streams[0][0] < soonest:
            when, name = self._streams[0]
            self._step()
            if name == "joins":
                soonest = when
        return soonest

    # --- the streams ------------------------------------------------------------------------------------------

    def _until(self, time: float) -> None:
        while self._streams and self._streams[0][0] <= time:
            self._step()

    def _coming(self) -> bool:
        return any(name == "joins" for _, name in self._streams)

    def _await(self, name: str, gaps: _Gaps) -> None:
        if gaps.done < gaps.most and (name == "joins" or self._many or self._coming()):
            heapq.heappush(self._streams, (gaps.next(), name))

    def _step(self) -> None:
        """The next event of a stream."""
        time, name = heapq.heappop(self._streams)
        gaps = self._gaps[name]
        if name == "joins":
            client = int(self._waiting[gaps.done])
            self.comes[client] = time
            if "leaves" in self._gaps:
                self._here[self._many] = client
                self._many += 1
            gaps.done += 1
            self._events.append(time)
        elif self._many:
            place = int(gaps.whom() * self._many)
            self._many -= 1
            self.goes[self._here[place]] = time
            self._here[place] = self._here[self._many]
            gaps.done += 1
            self._events.append(time)
        self._await(name, gaps)


class _Gaps:
    """The events of a stream: when, and a number that says whom they concern."""

    def __init__(self, seed: int, name: str, rate: Rate) -> None:
        self.seed, self.name, self.rate = seed, name, rate.rate
        self.most = self.done = self._at = 0
        self._time = 0.0
        self._block: Numbers = np.zeros(0)
        self._who: Numbers = np.zeros(0)

    def next(self) -> float:
        """The time of the next event."""
        at = self._at % _BLOCK
        if at == 0:
            numbers = np.arange(self._at, self._at + _BLOCK)
            self._block = (
                draws.exponential(draws.start(self.seed, f"{self.name} stream gaps"), numbers) / self.rate
            )
            self._who = draws.uniform(draws.start(self.seed, f"{self.name} stream who"), numbers)
        self._time += float(self._block[at])
        self._at += 1
        return self._time

    def whom(self) -> float:
        """A number from 0 to 1 for the event that `next` gave last."""
        return float(self._who[(self._at - 1) % _BLOCK])


def _count(most: int | float | None, clients: int, free: int) -> int:
    """How many of the pool a stream concerns."""
    if most is None:
        return free
    return min(free, most if isinstance(most, int) else max(1, int(most * clients + 0.5)))
