"""A bound on what one update can do, and weak noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from atoll.robust.points import Points
from atoll.robust.rows import Matrix
from atoll.robust.rule import Rule

__all__ = ["Bound"]


@dataclass(frozen=True)
class Bound(Rule):
    """The mean of updates that are cut to a norm, and noise on it.   Sun et al. 2019

    (1/n) sum_i x_i min(1, tau / |x_i|) + N(0, deviation^2). A client moves the result by tau / n at most: enough
    against few liars who must shout to be heard, as most backdoors must. The noise blurs what is left, and promises no
    privacy.

    Args:
        tau: the norm that an update may have.
        deviation: of what is added to every number of the mean.
    """

    tau: float
    deviation: float = 0.0

    name: ClassVar[str] = "bound"

    def __post_init__(self) -> None:
        self._require("tau", self.tau > 0, "must be above 0")
        self._require("deviation", self.deviation >= 0, "must not be negative")

    def weights(self, points: Points) -> Matrix:
        found: Matrix = np.minimum(1.0, self.tau / np.maximum(points.norms, 1e-300)) / points.count
        return found

    def noise(self, points: Points) -> float:
        return self.deviation
