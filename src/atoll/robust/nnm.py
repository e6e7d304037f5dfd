"""Every update as the mean of its neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from atoll.robust.points import Points
from atoll.robust.rows import Matrix
from atoll.robust.rule import Before, Draw

__all__ = ["NNM"]


@dataclass(frozen=True)
class NNM(Before):
    """Nearest-neighbour mixing.   Allouah et al., AISTATS 2023

    x_i <- the mean of the n - f updates that are nearest to it, itself among them. Honest updates come closer to one
    another, and a rule behind it has the best error there can be where clients' data differ.

    Args:
        f: how many clients may lie; by default as the rule behind it says.
    """

    f: int | None = None

    name: ClassVar[str] = "nnm"
    counts: ClassVar[bool] = True
    least: ClassVar[tuple[int, int]] = (2, 1)

    def mix(self, points: Points, liars: int, draw: Draw) -> Matrix:
        count = points.count
        many = count - liars
        found = np.zeros((count, count))
        nearest = np.argsort(points.near, axis=1, kind="stable")[:, :many]
        np.put_along_axis(found, nearest, 1.0 / many, axis=1)
        return found
