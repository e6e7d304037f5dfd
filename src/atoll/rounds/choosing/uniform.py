"""Everybody with the same chance."""

from __future__ import annotations

from dataclasses import dataclass

from atoll.tensors import Record

from .contract import Ask, Choice, Chosen, chosen
from .drawing import evenly

__all__ = ["Uniform"]


@dataclass(frozen=True)
class Uniform(Choice):
    """Everybody with the same chance, without replacement: FedAvg's (McMahan et al., AISTATS 2017, Algorithm 1)."""

    name = "uniform"

    def draw(self, state: Record, ask: Ask) -> Chosen:
        """Looks at `count` clients, and at more only where some of them are not there."""
        return chosen(evenly(ask.rng(), ask.present, ask.count, ask.there), state)
