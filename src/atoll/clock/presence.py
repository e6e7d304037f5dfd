"""When devices are there: in windows of time that repeat.

A window begins with the moment at which the device comes and ends before the moment at which it goes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import draws
from .draws import Floats, Ints

__all__ = ["Daily", "Presence", "There", "Windows"]


class There(NamedTuple):
    """K clients at a moment: whether each is there, and when that changes (inf: never). Shape [K]."""

    now: NDArray[np.bool_]
    change: Floats


class Presence(ABC):
    """When each client is there, as a pure function of client and time."""

    @abstractmethod
    def look(self, seed: int, clients: Ints, time: float) -> There:
        """Whether these clients are there at `time` (seconds, 0 or more), and when that changes."""


def _settled(n: Ints, edges: Callable[[Ints], tuple[Floats, Floats]], time: float) -> There:
    """Who is there, where the last window that has begun by `time` is about number `n` of each client.

    `edges` says when windows begin and end. All that is said follows from comparing with these very numbers: a client
    that comes back at some moment is there at that moment, whatever was rounded.
    """
    while True:
        begin, end = edges(n)
        following, _ = edges(n + 1)
        early, late = begin > time, following <= time
        if not (early.any() or late.any()):
            now = time < end
            return There(now, np.where(now, end, following))
        n = n - early + late


class Daily(Presence):
    """Each client is there for a share of every period (a day), from an hour of its own on."""

    def __init__(self, share: float, period: float) -> None:
        self.share, self.period = share, period

    def look(self, seed: int, clients: Ints, time: float) -> There:
        hour = draws.uniform(draws.start(seed, "device hour"), clients) * self.period
        length = self.share * self.period

        def edges(n: Ints) -> tuple[Floats, Floats]:
            begin = n * self.period + hour
            return begin, begin + length

        return _settled(np.floor((time - hour) / self.period).astype(np.int64), edges, time)


class Windows(Presence):
    """Windows as they were written down, client after client.

    Args:
        starts, ends: all windows, seconds; those of a client lie together, in order, and do not touch.
        cuts: where each client's windows begin, and where the last's end; shape [K + 1].
        periods: after how many seconds the windows of each client come again; inf: never. Shape [K].
        row: the rows of these arrays that clients have; their own numbers without it.

    The last window of a client may reach into the next period, as far as its first.
    """

    def __init__(
        self,
        starts: Floats,
        ends: Floats,
        cuts: Ints,
        periods: Floats,
        row: Callable[[int, Ints], Ints] = lambda seed, clients: clients,
    ) -> None:
        # One window more, which nobody has, so that looking past the last is no error.
        self.starts, self.ends = np.append(starts, np.inf), np.append(ends, np.inf)
        self.cuts, self.periods, self.row = cuts, periods, row

    def look(self, seed: int, clients: Ints, time: float) -> There:
        rows = self.row(seed, clients)
        first, many = self.cuts[rows], self.cuts[rows + 1] - self.cuts[rows]
        again = np.isfinite(self.periods[rows]) & (many > 0)
        period = np.where(again, self.periods[rows], 0.0)

        def edges(n: Ints) -> tuple[Floats, Floats]:
            """Windows have numbers on through all periods: n is n mod m of client's m, n // m periods later."""
            cycle, at = np.divmod(n, np.maximum(many, 1))
            at = np.minimum(first + at, len(self.starts) - 1)
            shift = cycle * period
            outside = ~again & ((cycle != 0) | (many == 0))
            beyond = np.where(n < 0, -np.inf, np.inf)
            begin, end = self.starts[at] + shift, self.ends[at] + shift
            return np.where(outside, beyond, begin), np.where(outside, beyond, end)

        cycle = np.floor(time / np.where(again, period, np.inf)).astype(np.int64)
        begun = self._begun(first, many, time - cycle * period)
        return _settled(cycle * many + begun - 1, edges, time)

    def _begun(self, first: Ints, many: Ints, time: NDArray[Any]) -> Ints:
        """How many windows of each client have begun by the time of its period: a binary search for all at once."""
        low, high = first, first + many
        while (going := low < high).any():
            middle = (low + high) // 2
            begun = going & (self.starts[middle] <= time)
            low, high = np.where(begun, middle + 1, low), np.where(going & ~begun, middle, high)
        return low - first
