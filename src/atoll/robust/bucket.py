"""Means of a few, drawn by lot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from atoll.robust.points import Points
from atoll.robust.rows import Matrix
from atoll.robust.rule import Before, Draw

__all__ = ["Bucket"]


@dataclass(frozen=True)
class Bucket(Before):
    """Buckets of s updates by lot, each one's mean in their place.   Karimireddy et al., ICLR 2022

    Honest means differ less; but f liars may spoil f of the n / s buckets. The last bucket may be smaller.

    Args:
        s: updates in a bucket.
    """

    s: int

    name: ClassVar[str] = "bucket"

    def __post_init__(self) -> None:
        self._require("s", self.s >= 1, "must be at least 1")

    def count(self, count: int) -> int:
        return -(-count // self.s)

    def mix(self, points: Points, liars: int, draw: Draw) -> Matrix:
        order = draw.permutation(points.count)
        found = np.zeros((self.count(points.count), points.count))
        for at, start in enumerate(range(0, points.count, self.s)):
            bucket = order[start : start + self.s]
            found[at, bucket] = 1.0 / len(bucket)
        return found
