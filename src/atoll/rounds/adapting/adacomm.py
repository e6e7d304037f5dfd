"""Fewer local steps as the loss falls."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from atoll.rounds.adapting.rule import Rule, Seen, Wish, share_of
from atoll.rounds.choosing import Learned
from atoll.tensors import Record

__all__ = ["AdaComm"]


@dataclass(frozen=True)
class AdaComm(Rule):
    """Average seldom at first, and often at the end.   Wang and Joshi, MLSys 2019, section 4 (basic rule)

        tau_l = ceil(sqrt(F_l / F_0) tau_0)

    tau_0 are the steps that the plan has for a client, F_0 is the mean training loss (over samples) of the first round,
    F_l that of the last round when a block l of rounds begins. A block is so many rounds (`every`), or so many virtual
    `seconds`: the first round that begins then or later begins it. Nobody does more than is planned.
    """

    every: int = 10
    seconds: float = 0.0
    name: ClassVar[str] = "adacomm"

    @property
    def clocked(self) -> bool:  # type: ignore[override]
        """Blocks of seconds need a clock."""
        return self.seconds > 0

    def begin(self) -> Record:
        return Record(first=0.0, share=1.0, block=0)

    def plan(self, state: Record, seen: Seen) -> Wish:
        return share_of(seen, state.share)

    def learn(self, state: Record, learned: Learned, time: float) -> Record:
        loss = mean_loss(learned)
        if not loss > 0:  # nobody answered, or the method reports none
            return state
        if not state.first:
            state = state.replace(first=loss)
        block = int(time // self.seconds) if self.seconds else learned.number // self.every
        if block == state.block:
            return state
        return state.replace(share=min(1.0, math.sqrt(loss / state.first)), block=block)


def mean_loss(learned: Learned) -> float:
    """Mean training loss over the samples of those whose reply was used; nan where nobody's was."""
    told = learned.told
    count = float(np.sum(learned.samples[told]))
    return float(np.sum(learned.loss[told] * learned.samples[told])) / count if count > 0 else math.nan
