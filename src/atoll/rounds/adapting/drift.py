"""Fewer local steps where clients drift apart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from atoll.rounds.adapting.rule import Rule, Seen, Wish, share_of
from atoll.rounds.choosing import Learned
from atoll.tensors import Record

__all__ = ["Drift"]


@dataclass(frozen=True)
class Drift(Rule):
    """Local work that keeps clients' models together.   After Kong et al., ICML 2021: consensus control

        share = min(1, most |d| / Xi),     Xi^2 = sum_k p_k |d_k - d|^2,     d = sum_k p_k d_k

    d_k are the updates of a round, p_k their shares of the weight; both squares are means over the last `window` rounds
    that had two updates to compare. Of the steps planned clients take this share, at least one.

    The paper's: models that are averaged from time to time learn as fast as one model while their distance Xi stays
    below a bound that grows with the norm of the global gradient (and with its noise, which is left out here), so that
    the distance is measured and held. Ours: they average more, over a graph without a server; here clients take fewer
    steps before the server averages, as Xi grows in proportion to them. |d|, the way that the average went, stands for
    the gradient; (Xi / |d|)^2 + 1 is the gradient diversity (Yin et al., AISTATS 2018) of updates. `most` stands for
    constants that nobody knows: at 1 all is done while clients go further together than apart.
    """

    most: float = 1.0
    window: int = 3
    name: ClassVar[str] = "drift"
    compares: ClassVar[bool] = True

    def begin(self) -> Record:
        return Record(apart=torch.zeros(0, dtype=torch.float64))

    def plan(self, state: Record, seen: Seen) -> Wish:
        squares = [value**2 for value in state.apart.tolist()]
        apart = math.sqrt(sum(squares) / len(squares)) if squares else 0.0
        return share_of(seen, self.most / apart) if apart > 0 else Wish()

    def learn(self, state: Record, learned: Learned, time: float) -> Record:
        if math.isnan(learned.apart):  # too few replies
            return state
        last = [*state.apart.tolist(), learned.apart][-self.window :]
        return state.replace(apart=torch.tensor(last, dtype=torch.float64))
