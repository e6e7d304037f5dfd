"""Push-sum: averages over links that go one way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from atoll.methods.neighbours.decentralised import Decentralised
from atoll.tensors import Record
from atoll.topology import Sums

__all__ = ["PushSum"]


@dataclass(frozen=True, kw_only=True)
class PushSum(Decentralised):
    """Average over links that go one way.   Assran et al., ICML 2019 (SGP)

    client:  trains from z_k = x_k / m_k, and gets to z_k'
    mixing:  x_i <- sum_j A_ij (x_j + z_j' - z_j);   m_i <- sum_j A_ij m_j;   z_i = x_i / m_i

    The columns of A sum to 1, so that nothing is lost of sum x and of sum m, the number of peers: whoever cannot send
    keeps its share. What somebody hears too much or too little of is divided out. Any graph will do in which there is
    a way from everybody to everybody, also one that changes ("epidemic:2", "arrows:FILE").
    """

    sums: ClassVar[Sums] = "columns"
    paper: ClassVar[str] = "Assran et al. 2019 (SGP)"

    def outset(self, model: Tensor) -> Record:
        return Record(mass=torch.ones_like(model[:1]))

    def start(self, own: Record) -> Tensor:
        return own.model / own.mass  # type: ignore[no-any-return]

    def offer(self, own: Record, trained: Record) -> Record:
        ahead = own.model + (trained.model - self.start(own))
        return Record(model=ahead, mass=own.mass, buffers=trained.buffers * own.mass)

    def settle(self, own: Record, trained: Record, offered: Record, mixed: Record) -> Record:
        return Record(model=mixed.model, mass=mixed.mass, buffers=mixed.buffers / mixed.mass)
