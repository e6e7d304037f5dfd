"""What can be told of a topology before a run: how fast it mixes, when it is exact, what it sends."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atoll.errors import ConfigError
from atoll.topology.topology import Topology
from atoll.topology.weights import Weights

__all__ = ["Figures", "exact_after", "figures", "gap"]

_DENSE = 1024
"""Peers up to which matrices are made dense for figures."""

_EXACT = 1e-12


@dataclass(frozen=True)
class Figures:
    """A topology in numbers.

    `gap` is 1 - |W - 11^T/n| of a round, where all are alike, or of the mean round of a period: the factor by which
    models come closer is 1 - gap. `exact_after` is after how many rounds all have the mean exactly, None: never.
    `degree` is the most that one peer hears in a round, `links` the messages of a round, on average over a period.
    """

    peers: int
    period: int | None
    degree: int
    links: float
    gap: float | None
    exact_after: int | None


def gap(weights: Iterable[Weights]) -> float:
    """1 - |W - 11^T/n| of exchanges one after the other (the largest singular value); by powers where n is large."""
    several = list(weights)
    peers = several[0].peers
    if peers == 1:
        return 1.0
    if peers <= _DENSE:
        product = _product(several)
        return float(1 - np.linalg.norm(product - 1 / peers, 2))
    return 1 - _power(several)


def _product(several: list[Weights]) -> NDArray[np.float64]:
    product = np.eye(several[0].peers)
    for each in several:
        product = each.dense() @ product
    return product


def _power(several: list[Weights]) -> float:
    """|W - 11^T/n| by the power method on W^T W, by lists of neighbours."""
    peers = several[0].peers
    x = np.cos(2 * np.pi * np.arange(peers) / peers) + np.linspace(-1, 1, peers) * 1e-3
    norm = 0.0
    for _ in range(2000):
        x = x - x.mean()
        x /= np.linalg.norm(x)
        y = x
        for each in several:
            i, j, w = each.entries
            y = np.bincount(i, w * y[j], peers)
        before, norm = norm, float(np.linalg.norm(y - y.mean()))
        for each in reversed(several):
            i, j, w = each.entries
            y = np.bincount(j, w * y[i], peers)
        if norm < _EXACT:
            return 0.0
        if abs(norm - before) < 1e-10:
            break
        x = y
    return norm


def exact_after(topology: Topology, most: int = 64) -> int | None:
    """After how many rounds all have the mean exactly (to 1e-12), if within `most`; of few peers only."""
    if topology.one_way or topology.peers > _DENSE:
        return None
    product = np.eye(topology.peers)
    for round in range(min(most, topology.period or most)):
        for each in topology.exchanges(round):
            product = each.dense() @ product
        if np.abs(product - 1 / topology.peers).max() < _EXACT:
            return round + 1
    return None


def figures(topology: Topology) -> Figures:
    """What there is to tell of a topology.

    Raises ConfigError where its weights are not what they must be, and where they follow from data.
    """
    if topology.name == "related" and not topology.links:
        raise ConfigError(
            f"topology = {topology.text}: who is related follows from data, and nothing can be told before",
            hint="atoll run with it, and the page shows who is like whom",
        )
    sums = "columns" if topology.one_way else "both"
    rounds = [topology.exchanges(round, sums) for round in range(topology.period or 8)]  # type: ignore[arg-type]
    every = [each for round in rounds for each in round]
    found = None
    if not topology.one_way:
        factor = 1 - gap(every)
        found = 1 - factor ** (1 / len(rounds)) if factor > _EXACT else 1.0
    return Figures(
        topology.peers,
        topology.period,
        max(each.degree for each in every),
        sum(each.links for each in every) / len(rounds),
        found,
        exact_after(topology),
    )
