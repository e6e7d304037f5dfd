"""Everybody on a toss of a coin of their own."""

from __future__ import annotations

from dataclasses import dataclass

from atoll.tensors import Record

from .contract import Ask, Choice, Chosen, chosen
from .drawing import evenly

__all__ = ["Poisson"]


@dataclass(frozen=True)
class Poisson(Choice):
    """Each client by itself, with the chance that makes a cohort on average: what amplifies central privacy.

    How many are asked varies, and may be none. Abadi et al., CCS 2016, section 3.1, with clients in the place of
    samples (McMahan et al., ICLR 2018, Algorithm 1).
    """

    name = "poisson"
    coins = True

    def draw(self, state: Record, ask: Ask) -> Chosen:
        rng = ask.rng()
        total = ask.present if isinstance(ask.present, int) else len(ask.present)
        drawn = evenly(rng, ask.present, int(rng.binomial(total, ask.count / total)), lambda k: k >= 0)
        return chosen(drawn[ask.there(drawn)], state)
