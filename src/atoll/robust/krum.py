"""The updates that lie nearest to many others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from atoll.robust.points import Points
from atoll.robust.rows import Matrix
from atoll.robust.rule import Rule

__all__ = ["Krum", "MultiKrum", "ranking", "scores"]


def scores(squares: Matrix, f: int) -> Matrix:
    """Krum's score of each of n updates: the sum of its squared distances to the n - f - 2 nearest others, [n]."""
    count = len(squares)
    near = np.sort(squares + np.diag(np.full(count, np.inf)), axis=1)[:, : max(count - f - 2, 1)]
    found: Matrix = near.sum(1)
    return found


def ranking(squares: Matrix, f: int) -> Sequence[int]:
    """The updates in the order of their scores; of equal ones, as two neighbours may be, first who is nearer to all."""
    return np.lexsort((squares.sum(1), scores(squares, f))).tolist()  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Krum(Rule):
    """The one update whose n - f - 2 nearest neighbours are nearest.   Blanchard et al., NeurIPS 2017

    Args:
        f: how many clients may lie.
    """

    f: int

    name: ClassVar[str] = "krum"
    least: ClassVar[tuple[int, int]] = (2, 3)

    def weights(self, points: Points) -> Matrix:
        found = np.zeros(points.count)
        found[ranking(points.near, self.f)[0]] = 1.0
        return found


@dataclass(frozen=True)
class MultiKrum(Rule):
    """The mean of the m updates with the best scores of Krum.   Blanchard et al., NeurIPS 2017

    Args:
        f: how many clients may lie.
        m: how many updates count; by default n - f.
    """

    f: int
    m: int | None = None

    name: ClassVar[str] = "multikrum"
    least: ClassVar[tuple[int, int]] = (2, 3)

    def __post_init__(self) -> None:
        self._require("m", self.m is None or self.m >= 1, "must be at least 1")

    def weights(self, points: Points) -> Matrix:
        many = min(self.m or points.count - self.f, points.count)
        found = np.zeros(points.count)
        found[ranking(points.near, self.f)[:many]] = 1.0 / many
        return found
