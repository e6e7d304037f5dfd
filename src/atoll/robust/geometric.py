"""The point from which the updates are near."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from atoll.robust.points import Points
from atoll.robust.rows import Matrix
from atoll.robust.rule import Rule

__all__ = ["Geometric", "Smoothed"]

_MOST, _STILL = 1000, 1e-10


@dataclass(frozen=True)
class Geometric(Rule):
    """The geometric median, the point z that sum_i |x_i - z| is smallest at.   Chen et al., SIGMETRICS 2017

    By Weiszfeld's steps, z <- sum_i (x_i / |x_i - z|) / sum_i (1 / |x_i - z|), in coefficients of the updates, from a
    start among the many. Sound while fewer than half are lies.
    """

    name: ClassVar[str] = "geometric"

    def weights(self, points: Points) -> Matrix:
        distances = np.sqrt(points.near)
        first = distances[np.argmin(distances.sum(1))]
        usual = float(np.median(first))
        if usual == 0.0:  # more than half are one point, and that is it
            return np.where(first == 0.0, 1.0 / np.count_nonzero(first == 0.0), 0.0)
        found = _inverse(first + usual, 0.0)
        for _ in range(_MOST):
            before, found = found, _inverse(points.away(_all(points, found)), 1e-9 * usual)
            if np.abs(found / before - 1.0).max() < _STILL:
                break
        return found


@dataclass(frozen=True)
class Smoothed(Rule):
    """A few of Weiszfeld's steps with distances of at least nu (RFA).   Pillutla et al., IEEE TSP 2022

    z <- sum_i (x_i / max(nu, |x_i - z|)) / sum_i (1 / max(nu, |x_i - z|)), from z = 0, the model as it was.

    Args:
        iterations: how many steps.
        nu: the distance below which all are alike.
    """

    iterations: int = 3
    nu: float = 1e-6

    name: ClassVar[str] = "rfa"

    def __post_init__(self) -> None:
        self._require("iterations", self.iterations >= 1, "must be at least 1")
        self._require("nu", self.nu > 0, "must be above 0")

    def weights(self, points: Points) -> Matrix:
        found = np.zeros(points.count)
        for _ in range(self.iterations):
            found = _inverse(points.away(_all(points, found)), self.nu)
        return found


def _inverse(distances: Matrix, least: float) -> Matrix:
    """Shares in proportion to 1 / distance."""
    shares = 1.0 / np.maximum(distances, least)
    found: Matrix = shares / shares.sum()
    return found


def _all(points: Points, weights: Matrix) -> Matrix:
    """Coefficients of all points but the origin."""
    return np.append(weights, np.zeros(len(points.gram) - 1 - len(weights)))
