"""Pairs of neighbours average their models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from atoll.methods.neighbours.dpsgd import DPSGD
from atoll.topology import Topology, Weights

__all__ = ["ADPSGD"]


@dataclass(frozen=True, kw_only=True)
class ADPSGD(DPSGD):
    """Train, then average with one neighbour at random.   Lian et al., ICML 2018 (AD-PSGD)

    client:  z_k as in D-PSGD
    mixing:  x_i, x_j <- (z_i + z_j) / 2  for pairs of neighbours at random, nobody in two of them

    The paper's peers wait for nobody. Here all train in rounds, and the pairs of a round are a random matching of
    the graph, drawn by the seed: what is lost is staleness, not the pairs.
    """

    paper: ClassVar[str] = "Lian et al. 2018 (AD-PSGD), in rounds"
    cost: ClassVar[str] = "1 model to one neighbour"

    def exchanges(self, graphs: Topology, round: int, there: Sequence[int]) -> tuple[Weights, ...]:
        return (graphs.pairs(round).among(there),)
