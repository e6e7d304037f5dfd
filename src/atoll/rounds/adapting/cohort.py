"""Few and fast clients first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from atoll.rounds.adapting.adacomm import mean_loss
from atoll.rounds.adapting.rule import Rule
from atoll.rounds.choosing import Learned
from atoll.tensors import Record

__all__ = ["Growing"]


@dataclass(frozen=True)
class Growing(Rule):
    """Begin with the fastest clients, and double their number.   FLANP: Reisizadeh et al. 2020, Algorithm 1

    A round has the n fastest of a cohort that is drawn as ever; n begins at `start` and doubles, up to the whole
    cohort, once n clients have taught what they can: the next ones start from a model that is warm. In the paper they
    have when the squared norm of the gradient is below 2 mu V_n, with constants that nobody knows in practice; here,
    when the mean training loss of the last `window` rounds is less than `flat` below that of as many before.
    """

    start: int = 2
    window: int = 5
    flat: float = 0.05
    name: ClassVar[str] = "cohort"
    clocked: ClassVar[bool] = True
    rounds: ClassVar[bool] = True

    def begin(self) -> Record:
        return Record(size=self.start, losses=torch.zeros(0, dtype=torch.float64))

    def size(self, state: Record, cohort: int) -> int:
        return min(int(state.size), cohort)

    def learn(self, state: Record, learned: Learned, time: float) -> Record:
        loss = mean_loss(learned)
        if not np.isfinite(loss):
            return state
        losses = [*state.losses.tolist(), loss][-2 * self.window :]
        size = int(state.size)
        if len(losses) == 2 * self.window:
            before, after = np.mean(losses[: self.window]), np.mean(losses[self.window :])
            if after > (1 - self.flat) * before:
                size, losses = min(2 * size, 1 << 40), []  # a stage is judged by its own rounds
        return state.replace(size=size, losses=torch.tensor(losses, dtype=torch.float64))
