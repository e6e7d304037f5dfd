"""D2: D-PSGD that takes back what unequal data did in the round before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from atoll.methods.neighbours.decentralised import Decentralised
from atoll.tensors import Record

__all__ = ["D2"]


@dataclass(frozen=True, kw_only=True)
class D2(Decentralised):
    """Subtract the step before from each step, so that unequal data cancel.   Tang et al., ICML 2018 (D2)

    client:  z_k as in D-PSGD
    mixing:  x_i <- sum_j V_ij (z_j + x_j - z_j of the round before),    V = (W + I) / 2

    With z = x - lr g this is the paper's sum_j V_ij (2 x_j - x_j' - lr g_j + lr g_j'), primes being the round before;
    the first round is D-PSGD. V stands for W since eigenvalues must be above -1/3, and those of a ring of even length
    end there.

    Traps: a peer that was absent subtracts a step of long ago, and the mean of all moves by that.
    """

    paper: ClassVar[str] = "Tang et al. 2018 (D2)"

    def outset(self, model: Tensor) -> Record:
        return Record(before=model)

    def offer(self, own: Record, trained: Record) -> Record:
        return Record(model=trained.model + (own.model - own.before), buffers=trained.buffers)

    def settle(self, own: Record, trained: Record, offered: Record, mixed: Record) -> Record:
        return Record(model=(offered.model + mixed.model) / 2, buffers=mixed.buffers, before=trained.model)
