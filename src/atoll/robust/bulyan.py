"""Krum's choice, again and again, and then the middle of each coordinate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from atoll.robust.krum import ranking
from atoll.robust.meamed import nearest_mean, nearest_parts
from atoll.robust.points import Points
from atoll.robust.rows import Matrix
from atoll.robust.rule import Columns

__all__ = ["Bulyan"]


@dataclass(frozen=True)
class Bulyan(Columns):
    """Choose n - 2f updates by Krum one by one; then mean around median.   El Mhamdi et al., ICML 2018

    Each coordinate is the mean of the n - 4f numbers of those chosen that are nearest to their median: a liar that is
    near in distance cannot be far in a single coordinate.

    Args:
        f: how many clients may lie.
    """

    f: int

    name: ClassVar[str] = "bulyan"
    least: ClassVar[tuple[int, int]] = (4, 3)

    def chosen(self, points: Points) -> Matrix:
        rest, found = list(range(points.count)), []
        for _ in range(points.count - 2 * self.f):
            at = ranking(points.near[np.ix_(rest, rest)], self.f)[0]
            found.append(rest.pop(at))
        chosen: Matrix = np.eye(points.count)[found]
        return chosen

    def middle(self, ordered: Tensor) -> Tensor:
        return nearest_mean(ordered, ordered.shape[1] - 2 * self.f)

    def parts(self, values: Tensor) -> Tensor:
        return nearest_parts(values, values.shape[1] - 2 * self.f)
