"""A deadline that grows when rounds stop teaching."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from atoll.rounds.adapting.rule import Numbers, Rule
from atoll.rounds.choosing import Learned
from atoll.tensors import Record

__all__ = ["Pacer"]


@dataclass(frozen=True)
class Pacer(Rule):
    """Short rounds while they teach much, longer ones when that gets flat.   Oort: Lai et al., OSDI 2021, section 4.3

    The deadline of a round is the time in which a share of those asked would be done, from `share` on. Every `window`
    rounds the utility of their replies, the sum over clients of |B_k| sqrt(mean loss^2), is set beside that of the
    window before: changed by less than `flat` of it, slower clients are waited for, and the share rises by `step`, up
    to 1. Oort's own pacer moves the time by which it prefers clients (see `choose="oort"`); this one moves the round's.
    The constants are those of FedScale.
    """

    share: float = 0.3
    step: float = 0.05
    window: int = 20
    flat: float = 0.1
    name: ClassVar[str] = "pacer"
    clocked: ClassVar[bool] = True
    rounds: ClassVar[bool] = True
    limits: ClassVar[bool] = True

    def begin(self) -> Record:
        return Record(share=self.share, utilities=torch.zeros(0, dtype=torch.float64))

    def deadline(self, state: Record, expected: Numbers, given: float) -> float:
        known = np.sort(expected[np.isfinite(expected)])
        return float(known[max(0, math.ceil(state.share * len(known) - 1e-9) - 1)]) if len(known) else given

    def learn(self, state: Record, learned: Learned, time: float) -> Record:
        told = learned.told
        utility = float(np.sum(learned.samples[told] * np.sqrt(learned.squares[told])))
        utilities, share = [*state.utilities.tolist(), utility], state.share
        if len(utilities) == 2 * self.window:
            before, after = sum(utilities[: self.window]), sum(utilities[self.window :])
            utilities = utilities[self.window :]
            if abs(after - before) <= self.flat * before:
                share = min(1.0, share + self.step)
        return state.replace(share=share, utilities=torch.tensor(utilities, dtype=torch.float64))
