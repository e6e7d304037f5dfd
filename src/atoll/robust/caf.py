"""Weights that fall along the direction in which updates differ most."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from atoll.robust.points import Points
from atoll.robust.rows import Matrix
from atoll.robust.rule import Rule

__all__ = ["CAF", "spread"]


@dataclass(frozen=True)
class CAF(Rule):
    """Covariance-bound-agnostic filter.   Allouah et al., ICML 2025

    From weights c_i = 1: with the weighted mean and the direction v of largest weighted variance,
    c_i <- c_i (1 - t_i / max t), t_i = (v . (x_i - mean))^2, max t over those that still count, until
    sum c <= n - 2f. The result is the mean whose largest variance was smallest. With f = 0 the mean.

    Args:
        f: how many clients may lie.
    """

    f: int

    name: ClassVar[str] = "caf"
    least: ClassVar[tuple[int, int]] = (2, 1)

    def weights(self, points: Points) -> Matrix:
        weights, best, smallest = np.ones(points.count), np.ones(points.count), math.inf
        while weights.sum() > points.count - 2 * self.f:
            variance, along = spread(points, weights)
            if variance < smallest:
                best, smallest = weights, variance
            most = along[weights > 0].max()  # of those that count: one of them is left out each time
            if not most > 0:  # all that are left are one
                break
            weights = weights * (1.0 - np.minimum(along / most, 1.0))
        found: Matrix = best / best.sum()
        return found


def spread(points: Points, weights: Matrix) -> tuple[float, Matrix]:
    """The largest variance of updates with these weights, and how far each lies along its direction, squared, [n]."""
    share = weights / weights.sum()
    centred = np.eye(points.count) - share
    gram: Matrix = centred @ points.gram[: points.count, : points.count] @ centred.T
    roots = np.sqrt(share)
    values, vectors = np.linalg.eigh(roots[:, None] * gram * roots)
    if not values[-1] > 0:
        return 0.0, np.zeros(points.count)
    along: Matrix = (gram @ (roots * vectors[:, -1])) ** 2 / values[-1]
    return float(values[-1]), along
