"""Correlated noise C^-1 z by a banded Toeplitz matrix C, the square root of the running sum cut to a few bands.

With columns of length one, and clients that come once in as many rounds as there are bands at most, a client
moves C x by no more than its clip times the root of its turns.   Choquette-Choo et al., NeurIPS 2023 (BandMF);
coefficients of Fichtenberger, Henzinger and Upadhyay, ICML 2023.
"""

from __future__ import annotations

from collections import deque

from atoll.privacy.events import Correlated
from atoll.privacy.factorised import column_norms, root_coefficients
from atoll.privacy.mechanisms.continuous import gaussian
from atoll.privacy.mechanisms.trees import check_round
from atoll.privacy.source import Source
from atoll.tensors import Tensors

__all__ = ["Banded"]


class Banded:
    """A stream of noise for `rounds` rounds, from 1 on, in the shapes of `like`; `noise(t)` is for the sum of round t.

    `deviation` is that of the independent draws, absolute; one band is independent noise. Holds one set of
    tensors a band; all of it follows from the source, so that a stream goes on from its key alone (with as many
    draws as there were rounds).
    """

    def __init__(self, source: Source, like: Tensors, deviation: float, rounds: int, bands: int) -> None:
        self.source = source
        self._like = like
        self._deviation = deviation
        self._rounds = rounds
        self._bands = bands
        self._coefficients = root_coefficients(bands).tolist()
        self._lengths = column_norms(bands, rounds).tolist()
        self._round = 0
        self._past: deque[Tensors] = deque(maxlen=bands - 1)  # the newest first

    def event(self, clip: float, separation: int) -> Correlated:
        """What all rounds of the stream are to accounting, where clients come once in `separation` rounds at most.

        Raises ConfigError for fewer rounds in between than there are bands.
        """
        return Correlated(
            matrix="banded",
            noise=self._deviation / clip,
            rounds=self._rounds,
            separation=separation,
            bands=self._bands,
            stream=self.source.name,
        )

    def noise(self, round: int) -> Tensors:
        """What round `round` adds, float64.  Raises ConfigError for a round beyond those that were accounted for.

        Row `round` of C^-1 z by forward substitution, times the length of the column that C is divided by.
        """
        check_round(round, self._rounds)
        if round <= self._round:
            self._round = 0
            self._past.clear()
        while self._round < round:
            self._round += 1
            row = gaussian(self._like, self._deviation, self.source.at("banded", self._round))
            for coefficient, past in zip(self._coefficients[1:], self._past, strict=False):
                row = row - past * coefficient
            self._past.appendleft(row)
        length: float = self._lengths[round - 1]
        return row * length
