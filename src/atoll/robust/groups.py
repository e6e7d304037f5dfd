"""Means of groups, so that nobody need see a single update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from atoll.robust.points import Points
from atoll.robust.rows import Matrix
from atoll.robust.rule import Before, Draw

__all__ = ["Groups"]


@dataclass(frozen=True)
class Groups(Before):
    """The updates in so many groups by lot, each group's mean in their place.

    Like `bucket`, but the number of groups is said, and it comes first: behind secure aggregation each group's sum is
    taken by itself, and the rule sees no single update. f liars may spoil f groups.

    Args:
        k: how many groups.
    """

    k: int

    name: ClassVar[str] = "groups"

    def __post_init__(self) -> None:
        self._require("k", self.k >= 2, "must be at least 2")

    @property
    def least(self) -> tuple[int, int]:  # type: ignore[override]
        return 0, self.k

    def count(self, count: int) -> int:
        return min(self.k, count)

    def cut(self, count: int, draw: Draw) -> list[list[int]]:
        """The positions of so many updates, group by group; sizes differ by one at most."""
        return [sorted(part.tolist()) for part in np.array_split(draw.permutation(count), self.k)]

    def mix(self, points: Points, liars: int, draw: Draw) -> Matrix:
        found = np.zeros((self.count(points.count), points.count))
        for at, part in enumerate(each for each in self.cut(points.count, draw) if each):
            found[at, part] = 1.0 / len(part)
        return found
