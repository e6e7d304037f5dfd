"""Devices that come and go at random: exponential times there, exponential times away."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import draws
from .draws import Floats, Ints
from .presence import Presence, There

__all__ = ["Markov"]

_MOST = 1 << 18  # numbers that are drawn at once
_NTH, _BEGIN, _END = range(3)


class _Kept(NamedTuple):
    """The stays (there or away) of K clients that were looked at last."""

    client: Ints
    """Ascending, shape [K]."""
    stays: Floats
    """The how manieth stay, when it begins, when it ends: shape [3, K]. One array, so that it is written in one go."""


class Markov(Presence):
    """Each client comes and goes: exponential times there, exponential times away.

    A Markov chain in continuous time, which starts in its stationary distribution: with means of `on` and `off` seconds
    a client is there for on / (on + off) of the time. How long its stay number n lasts is a draw at an address; when
    that begins is the sum of those before it. The stay that was looked at last is kept, for the clients that were
    looked at and for no others: going on from there takes as many draws as the client has switched since.
    """

    def __init__(self, on: float, off: float) -> None:
        self.on, self.off = on, off
        self._kept = self._nothing()
        self._seed: int | None = None

    @staticmethod
    def _nothing() -> _Kept:
        return _Kept(np.zeros(0, dtype=np.int64), np.zeros((3, 0)))

    def look(self, seed: int, clients: Ints, time: float) -> There:
        if seed != self._seed:
            self._kept, self._seed = self._nothing(), seed
        each, back = clients, np.arange(len(clients))
        if not (clients[1:] > clients[:-1]).all():
            each, back = np.unique(clients, return_inverse=True)
        stays = self._at(seed, each, time)
        now = self._first(seed, each) ^ (stays[_NTH] % 2 == 1)
        return There(now[back], stays[_END][back])

    def _first(self, seed: int, clients: Ints) -> NDArray[np.bool_]:
        """Whether each client's first stay is there."""
        return draws.uniform(draws.start(seed, "device there"), clients) < self.on / (self.on + self.off)

    def _lengths(self, seed: int, clients: Ints, nth: Ints) -> Floats:
        """How long stays `nth` of clients last; shape [K, N] for clients [K, 1] and `nth` [K, N]."""
        there = self._first(seed, clients[:, 0])[:, None] ^ (nth % 2 == 1)
        lengths = draws.exponential(draws.start(seed, "device stay"), clients, nth)
        return lengths * np.where(there, self.on, self.off)

    def _at(self, seed: int, clients: Ints, time: float) -> Floats:
        """The stays of these clients (ascending, each once) in which `time` lies, [3, K]; they are kept."""
        kept = self._kept
        place = np.searchsorted(kept.client, clients)
        known = place < len(kept.client)
        known[known] = kept.client[place[known]] == clients[known]
        stays = np.zeros((3, len(clients)))
        stays[:, known] = kept.stays[:, place[known]]
        fresh = ~known | (stays[_BEGIN] > time)  # a time before what is kept: from the start again
        stays[:, fresh] = [[-1.0], [0.0], [0.0]]
        while len(behind := np.flatnonzero(stays[_END] <= time)):
            self._advance(seed, clients, behind, time, stays)
        if known.all():
            kept.stays[:, place] = stays
        else:
            at = place[~known]
            client, wider = (
                np.insert(kept.client, at, clients[~known]),
                np.insert(kept.stays, at, 0.0, axis=1),
            )
            wider[:, np.searchsorted(client, clients)] = stays
            self._kept = _Kept(client, wider)
        return stays

    def _advance(self, seed: int, clients: Ints, behind: Ints, time: float, stays: Floats) -> None:
        """Move clients on toward the stay in which `time` lies, by as many stays as are worth drawing at once."""
        lag = float(time - stays[_END, behind].min())
        many = int(min(lag / (self.on + self.off) * 2.2 + 1, _MOST))
        behind = behind[: max(1, _MOST // many)]
        later = stays[_NTH, behind, None].astype(np.int64) + 1 + np.arange(many)
        lengths = self._lengths(seed, clients[behind, None], later)
        # Added up one after another, so that it does not matter how many are drawn at once.
        ends = np.cumsum(np.concatenate([stays[_END, behind, None], lengths], axis=1), axis=1)
        past = ends[:, 1:] > time
        at = np.where(past.any(axis=1), past.argmax(axis=1), many - 1)
        rows = np.arange(len(behind))
        stays[:, behind] = [stays[_NTH, behind] + at + 1, ends[rows, at], ends[rows, at + 1]]
