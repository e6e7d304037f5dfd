"""Without those that stand out along one direction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from atoll.robust.caf import spread
from atoll.robust.points import Points
from atoll.robust.rows import Matrix
from atoll.robust.rule import Rule

__all__ = ["DnC"]


@dataclass(frozen=True)
class DnC(Rule):
    """Divide and conquer: the mean without the f that lie furthest along the first principal direction.

    Shejwalkar & Houmansadr, NDSS 2021. There the direction is found for random subsets of coordinates,
    since a decomposition is costly; from inner products all of them can be looked at, and once is enough.

    Args:
        f: how many clients may lie.
    """

    f: int

    name: ClassVar[str] = "dnc"
    least: ClassVar[tuple[int, int]] = (2, 1)

    def weights(self, points: Points) -> Matrix:
        _, along = spread(points, np.ones(points.count))
        found = np.zeros(points.count)
        found[np.argsort(along, kind="stable")[: points.count - self.f]] = 1.0 / (points.count - self.f)
        return found
