"""Gossip learning: models walk, and merge where they meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from atoll.methods.neighbours.decentralised import Decentralised
from atoll.tensors import Record
from atoll.topology import Sums, Topology, Weights

__all__ = ["Gossip"]


@dataclass(frozen=True, kw_only=True)
class Gossip(Decentralised):
    """Send the model to one neighbour at random; merge what arrives by age.   Hegedus, Danner, Jelasity 2021

    client:  z_k as in D-PSGD;  its age a_k grows by the steps it took
    mixing:  everybody sends (z, a) to one neighbour;
             x_i <- sum_j a_j z_j / sum_j a_j,   a_i <- max_j a_j      j: i and those whose models it got

    An older model has seen more, and counts for more. Who gets nothing goes on with its own. The mean of all models
    does not stay: gossip learns without weights that everybody would have to agree on.
    """

    sums: ClassVar[Sums] = "rows"
    most: ClassVar[tuple[str, ...]] = ("age",)
    paper: ClassVar[str] = "Ormandi et al. 2013; Hegedus et al. 2021"
    cost: ClassVar[str] = "1 model to one neighbour"
    apart: ClassVar[str] = "models walk one by one, and of ages the largest counts"

    def outset(self, model: Tensor) -> Record:
        return Record(age=torch.ones_like(model[:1]))

    def offer(self, own: Record, trained: Record) -> Record:
        age = own.age + trained.steps
        return Record(model=trained.model * age, buffers=trained.buffers * age, mass=age, age=age)

    def settle(self, own: Record, trained: Record, offered: Record, mixed: Record) -> Record:
        return Record(model=mixed.model / mixed.mass, buffers=mixed.buffers / mixed.mass, age=mixed.age)

    def exchanges(self, graphs: Topology, round: int, there: Sequence[int]) -> tuple[Weights, ...]:
        return (graphs.walks(round, there),)
