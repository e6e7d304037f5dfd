"""One after the other, in an order that is drawn once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from atoll import seeds
from atoll.tensors import Record

from .contract import Ask, Choice, Chosen, chosen

__all__ = ["Cyclic"]


@dataclass(frozen=True)
class Cyclic(Choice):
    """Cohorts in turn, in an order drawn once: nobody comes again before all others, which correlated noise builds on.

    Of n clients, k a round, each takes part once in any n // k rounds at most. Who is not there misses its turn.
    """

    name = "cyclic"

    def draw(self, state: Record, ask: Ask) -> Chosen:
        everyone = ask.everyone()
        order = everyone[seeds.rng(ask.seed, "cyclic").permutation(len(everyone))]
        turns = len(everyone) // ask.count
        at = (ask.number - 1) % turns * ask.count
        found = np.sort(order[at : at + ask.count]) if ask.nth == 0 else order[:0]
        return chosen(found[ask.there(found)], state)
