"""Codecs that fit clients' bandwidth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from atoll.rounds.adapting.rule import Rule, Seen
from atoll.tensors import Record

__all__ = ["Bandwidth"]

_SLACK = 1e-9  # times are sums of seconds


@dataclass(frozen=True)
class Bandwidth(Rule):
    """The best codec with which a client is done in time.   After BCRS: Tang et al., ICPP 2024

    Of the channel's codecs, written from the best to the smallest, each client takes the first with which its order
    ends in T seconds; the one that is quickest where there is none. T is the round's deadline, or where it has none,
    the time in which `share` of those asked would be done with the codec that is quickest for each: with 1 no round
    takes longer than if all took the smallest, and whoever has time to spare sends more.

    Ours: codecs from a list, where theirs has one share of top-k for each client, and the whole order counts, training
    too, where theirs looks at uploads.
    """

    share: float = 1.0
    name: ClassVar[str] = "bandwidth"
    clocked: ClassVar[bool] = True
    rounds: ClassVar[bool] = True
    chooses: ClassVar[bool] = True

    def codecs(self, state: Record, seen: Seen) -> Mapping[int, int]:
        if seen.uploads is None or not len(seen.clients):
            return {}
        whole = seen.fixed + seen.step * seen.steps + seen.uploads
        least = np.sort(np.min(whole, axis=0))
        seconds = min(seen.deadline, float(least[max(0, int(np.ceil(self.share * len(least))) - 1)]))
        fits = whole <= seconds * (1 + _SLACK)
        chosen = np.where(np.any(fits, axis=0), np.argmax(fits, axis=0), np.argmin(whole, axis=0))
        return {int(k): int(at) for k, at in zip(seen.clients, chosen, strict=True)}
