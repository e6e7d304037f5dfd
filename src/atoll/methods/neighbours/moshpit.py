"""Moshpit SGD: means in small groups, one axis of a grid after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from atoll.methods.neighbours.dpsgd import DPSGD
from atoll.methods.parts.settings import require
from atoll.topology import Topology, Weights

__all__ = ["Moshpit"]


@dataclass(frozen=True, kw_only=True)
class Moshpit(DPSGD):
    """Average in groups on a grid, along every axis in turn.   Ryabinin et al., NeurIPS 2021

    client:  z_k as in D-PSGD
    mixing:  for each axis of the grid:  all peers of a line take their mean

    On a full grid without failures all peers then have the mean of all. With failures, groups are those who are
    there. `topology = "grid:2"` with D-PSGD takes one axis a round.
    """

    topology: str = "grid:2"

    paper: ClassVar[str] = "Ryabinin et al. 2021 (Moshpit SGD)"
    cost: ClassVar[str] = "1 model to each of its groups"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "topology", self.topology.startswith("grid"), "must be a grid, such as grid:2")

    def exchanges(self, graphs: Topology, round: int, there: Sequence[int]) -> tuple[Weights, ...]:
        axes = range(graphs.period or 1)
        return tuple(self.among(weights, there) for axis in axes for weights in graphs.exchanges(axis))
