"""Clients with many samples more often."""

from __future__ import annotations

from dataclasses import dataclass

from atoll.tensors import Record

from .contract import Ask, Choice, Chosen, chosen
from .drawing import by_size

__all__ = ["Weighted"]


@dataclass(frozen=True)
class Weighted(Choice):
    """One after the other, each in proportion to its training samples among those left, without replacement.

    Successive sampling, by the keys of Efraimidis and Spirakis (2006). Replies still count for their samples, so large
    clients count twice over; `importance` is the choice whose average is that of everybody.

    Args:
        most: no client has more samples. With it only some clients' sizes are looked at, which is what a population
            made on demand needs; the chances are the same.
    """

    most: int | None = None

    name = "weighted"

    def draw(self, state: Record, ask: Ask) -> Chosen:
        """Raises ConfigError for a client that has more samples than `most`."""
        return chosen(by_size(ask, ask.rng(), ask.count, self.most), state)
