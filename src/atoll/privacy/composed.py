"""Privacy losses of many events together, composed where that is a product: tight, and told again in milliseconds.

What events lose together is a sum of independent losses on one grid. Its Fourier transform is the product of theirs,
and delta at an epsilon is an inner product with the transform of (1 - e^(epsilon - loss))+, a difference of geometric
series. The transform of a long sum is next to nothing but at its lowest frequencies: only these are kept, and one event
more costs one multiplication of them.   Koskela, Jälkö and Honkela, AISTATS 2020; Gopi, Lee and Wutschitz, NeurIPS 2021

Losses are tilted, weighed by an exponential that moves the sum to where its tail has delta left: rounding errors are
relative to that tail then, and not to 1, beside which a small delta would drown in them.

Errors are on the safe side: the library rounds losses up, what may lie outside of the window is counted as an infinite
loss (by Chernoff's bound), and so is what rounding may hide.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from atoll.privacy import curves
from atoll.privacy.events import Adjacency, Event
from atoll.privacy.factorised import Vector

__all__ = ["Composition"]

_OUTSIDE = 1e-9  # of delta: what may lie outside of the window, at either end
_ROUNDING = 2.0**-52  # an event's, about, beside the tilted whole
_FAINT = 1e-20  # of the transform: frequencies below are let go
_DENSE = 1 / 16  # of all frequencies: while more are kept, the sum itself is cheaper to look at
_ROW = 64  # cells that moments are taken of together
_LARGE = 600.0  # exponents beyond are left: of cells that do not count
_FAR = 20.0  # logarithm of how much larger than delta a tail may be by its bound
_DRIFT = 2  # places by which the best tilt may move, before there is a new one
_TURNS = 200  # of Newton's method, which takes a few

Spectrum = NDArray[np.complex128]


class Composition:
    """The epsilon at `delta` of events for which there are loss distributions, told again and again as they grow.

    `step` is that of the losses.
    """

    def __init__(self, neighbours: Adjacency, step: float, delta: float) -> None:
        self.neighbours, self.step = neighbours, step
        self._sums = [_Sum(neighbours, step, way, delta) for way in ("remove", "add")]

    def epsilon(self, events: Mapping[Event, int]) -> float | None:
        """No less than what so many of each event come to; None where one of them has no loss distribution."""
        if any(_losses(event, self.neighbours, self.step, "remove") is None for event in events):
            return None
        return max(each.epsilon(events) for each in self._sums)


# --- one event ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Losses:
    """The loss of one event: `masses` from cell `lowest` on, and `infinite`, the chance that it has no bound.

    `up` is log E e^(aX) at each of `_slopes`, where X counts cells from the lowest, and `down` that of
    e^(-aX).
    """

    lowest: int
    masses: Vector
    infinite: float
    up: Vector
    down: Vector

    def tilted(self, at: int, slope: float, cells: int) -> Spectrum:
        """The transform on a ring of so many cells of masses weighed by e^(slope X), slope `at` of `_slopes`."""
        padded = np.zeros(-(-len(self.masses) // cells) * cells)
        weight = slope * np.arange(len(self.masses)) - self.up[at]
        padded[: len(self.masses)] = np.exp(np.log(np.maximum(self.masses, 1e-300)) + weight)
        return np.fft.rfft(padded.reshape(-1, cells).sum(0))


def _slopes(step: float) -> Vector:
    """Of exponentials, for each cell."""
    return step * 2.0 ** np.arange(-8, 14, 0.25)


@lru_cache(maxsize=64)
def _losses(event: Event, neighbours: Adjacency, step: float, way: str) -> _Losses | None:
    """The loss of one event, for neighbours with one participant less (`way` "remove") or more ("add")."""
    found = curves.loss(event, neighbours, step)
    if found is None:
        return None
    lowest, masses, infinite = curves.masses(found, way)
    rows = np.zeros(-(-len(masses) // _ROW) * _ROW)
    rows[: len(masses)] = masses
    return _Losses(
        lowest,
        masses,
        infinite,
        *(_moments(rows.reshape(-1, _ROW), sign * _slopes(step)) for sign in (1, -1)),
    )


def _moments(rows: Vector, slopes: Vector) -> Vector:
    """log E e^(aX) at each slope, of the chances of 0, 1, ... in rows."""
    columns = np.arange(rows.shape[1])[:, None] * slopes
    most = columns.max(0)  # else it is too much for a float
    inside = np.log(np.maximum(rows @ np.exp(columns - most), 1e-300)) + most
    logs = inside + np.arange(0, rows.size, rows.shape[1])[:, None] * slopes
    found: Vector = np.logaddexp.reduce(logs, axis=0)
    return found


# --- their sum ------------------------------------------------------------------------------------------------------


class _Sum:
    """The loss of many events, for neighbours one way."""

    def __init__(self, neighbours: Adjacency, step: float, way: str, delta: float) -> None:
        self._neighbours, self._step, self._way, self._delta = neighbours, step, way, delta
        self._slopes, self._rare = _slopes(step), -math.log(_OUTSIDE * delta)
        self._counts: dict[Event, int] = {}
        self._factors: dict[Event, Spectrum] = {}
        self._cells = 0  # of the ring
        self._tilt = self._best = 0  # the places of its slope, and of the one that would be best
        self._last = 0.0

    def epsilon(self, events: Mapping[Event, int]) -> float:
        losses = {event: self._of(event) for event in events}
        counted = [(losses[event], count) for event, count in events.items()]
        missing = -math.expm1(sum(n * math.log1p(-each.infinite) for each, n in counted))
        missing += 2 * _OUTSIDE * self._delta
        if missing >= self._delta:
            return math.inf
        up: Vector = np.sum([n * each.up for each, n in counted], axis=0)
        down: Vector = np.sum([n * each.down for each, n in counted], axis=0)
        self._base = sum(n * each.lowest for each, n in counted)
        self._longest = sum(n * (len(each.masses) - 1) for each, n in counted)
        self._begin = max(0, math.floor(float(np.max(-(down + self._rare) / self._slopes))))
        best = int(np.argmin(((up - math.log(self._delta)) / self._slopes)[:-8]))
        wide = self._begin + self._cells >= self._end(up)
        anew = not (self._cells and wide and abs(best - self._best) < _DRIFT and self._grows(events))
        if anew:
            self._best = best
            self._restart(losses, up)
        self._multiply(events)
        self._whole, self._error = float(up[self._tilt]), _ROUNDING * sum(events.values())
        dense = anew or len(self._kept) > _DENSE * self._cells
        found = None if dense else self._solved(self._delta - missing)
        self._last = self._seen(self._delta - missing) if found is None else found
        return self._last

    def _of(self, event: Event) -> _Losses:
        found = _losses(event, self._neighbours, self._step, self._way)
        assert found is not None
        return found

    # --- the product ------------------------------------------------------------------------------------------

    def _end(self, up: Vector) -> int:
        """The cell above all of the sum, as it is and tilted, but for chances that are counted."""
        end, at = self._plain_end(up), self._tilt
        steeper = (up[at + 1 :] - up[at] + self._rare) / (self._slopes[at + 1 :] - self._slopes[at])
        return min(self._longest, math.ceil(max(end, float(np.min(steeper))))) + 1

    def _plain_end(self, up: Vector) -> float:
        return min(float(np.min((up + self._rare) / self._slopes)), self._longest)

    def _grows(self, events: Mapping[Event, int]) -> bool:
        """Whether these are the events of before, and more of them."""
        return all(events.get(event, 0) >= n for event, n in self._counts.items()) and all(
            event in self._factors for event in events
        )

    def _restart(self, losses: Mapping[Event, _Losses], up: Vector) -> None:
        """A ring that is wide enough for a while, and a tilt towards where delta is left that keeps it so."""
        self._tilt = self._best
        wide = self._plain_end(up) - self._begin
        while self._tilt and self._end(up) - self._begin > 1.5 * wide + 2:
            self._tilt -= 1
        self._cells = 1 << (2 * (self._end(up) - self._begin)).bit_length()
        slope = float(self._slopes[self._tilt])
        self._factors = {event: each.tilted(self._tilt, slope, self._cells) for event, each in losses.items()}
        self._counts = {}
        self._kept = np.arange(self._cells // 2 + 1)
        self._product = np.ones(len(self._kept), np.complex128)

    def _multiply(self, events: Mapping[Event, int]) -> None:
        for event, count in events.items():
            if more := count - self._counts.get(event, 0):
                factor = self._factors[event]
                self._product = self._product * (factor if more == 1 else factor**more)
        self._counts = dict(events)
        loud = np.abs(self._product) > _FAINT
        if loud.mean() < 0.9:
            self._kept, self._product = self._kept[loud], self._product[loud]
            self._factors = {event: each[loud] for event, each in self._factors.items()}

    # --- epsilon ----------------------------------------------------------------------------------------------

    def _first(self, epsilon: float) -> int:
        """The first cell of a loss above epsilon."""
        return max(math.floor(epsilon / self._step) + 1 - self._base, self._begin)

    def _seen(self, delta: float) -> float:
        """The least epsilon with sum (1 - e^(epsilon - loss))+ <= delta, from the masses of the sum."""
        slope, first = self._slopes[self._tilt], self._first(0.0)
        cells = np.arange(first, self._begin + self._cells)
        if not len(cells):
            return 0.0
        spectrum = np.zeros(self._cells // 2 + 1, np.complex128)
        spectrum[self._kept] = self._product
        masses = np.roll(np.fft.irfft(spectrum, self._cells), -(first % self._cells))[: len(cells)]
        ref = round((self._whole - math.log(delta)) / slope)  # about where delta is left
        scale, away = math.exp(self._whole - slope * ref), (cells - ref).astype(np.float64)
        weights = np.exp(np.clip(-slope * away, -_LARGE, _LARGE))
        above = np.cumsum((masses * weights)[::-1])[::-1] + self._error * weights
        shrunk = np.exp(np.clip(-self._step * away, -_LARGE / 2, _LARGE / 2))
        weighed = np.cumsum((masses * weights * shrunk)[::-1])[::-1] / shrunk
        over = np.flatnonzero(scale * (above - weighed) > delta)  # what is far below `ref` may be noise
        at = int(over[-1]) + 1 if len(over) else 0
        if at == len(cells):
            return math.inf
        return self._crossing(first + at, scale * float(above[at]), scale * float(weighed[at]), delta)

    def _crossing(self, first: int, above: float, weighed: float, delta: float) -> float:
        """Where above - e^(epsilon - loss) weighed is delta, with the loss of the cell `first`."""
        if above <= delta or weighed <= 0:
            return 0.0
        return max((first + self._base) * self._step + math.log((above - delta) / weighed), 0.0)

    def _solved(self, delta: float) -> float | None:
        """The same by Newton's method, from the left: the sum is a polygon in e^epsilon, falling and convex.

        None where it does not end.
        """
        epsilon, before = self._last, -1
        for _ in range(_TURNS):
            first = self._first(epsilon)
            if self._whole - self._slopes[self._tilt] * first > math.log(delta) + _FAR:
                return None  # rounding errors would show
            above, weighed = self._tail(first)
            if above <= delta or weighed <= 0:
                return None
            found = self._crossing(first, above, weighed, delta)
            if first == before or abs(found - epsilon) < 1e-13:
                return found
            epsilon, before = found, first
        return None

    def _tail(self, first: int) -> tuple[float, float]:
        """Of the cells from `first` on: all masses, and masses weighed by e^(loss of first - loss)."""
        ring, size, end = self._kept, self._cells, self._begin + self._cells
        turn, there, back = (
            np.exp(2j * math.pi / size * (ring * (at % size) % size)) for at in (1, first, end)
        )
        slope = float(self._slopes[self._tilt])
        halves = self._product * (np.where((ring == 0) | (2 * ring == size), 1.0, 2.0) / size)

        def series(decay: float) -> float:
            found = halves * (there - math.exp(-decay * (end - first)) * back) / (1 - math.exp(-decay) * turn)
            return float(found.real.sum())

        scale = math.exp(self._whole - slope * first)
        return scale * (series(slope) + self._error), scale * series(slope + self._step)
