"""Steps from where the last round ended, each client's cut to a length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from atoll.robust.points import Points
from atoll.robust.rows import Matrix
from atoll.robust.rule import Rule

__all__ = ["CenteredClip"]


@dataclass(frozen=True)
class CenteredClip(Rule):
    """Centered clipping.   Karimireddy et al., ICML 2021

    v <- v + (1/n) sum_i (x_i - v) min(1, tau / |x_i - v|), from the v of the last round, at first 0.

    A client moves the result by tau / n at most in each iteration. It relies on updates that stay much the same from
    round to round (put `momentum:0.9` into the channel).

    Args:
        tau: how far from the last result an update may lie.
        iterations: how many steps.
    """

    tau: float
    iterations: int = 1

    name: ClassVar[str] = "cclip"
    beside: ClassVar[Literal["centre", "root"] | None] = "centre"

    def __post_init__(self) -> None:
        self._require("tau", self.tau > 0, "must be above 0")
        self._require("iterations", self.iterations >= 1, "must be at least 1")

    def weights(self, points: Points) -> Matrix:
        found = np.append(np.zeros(points.count), 1.0)
        for _ in range(self.iterations):
            away = points.away(found)
            share = np.minimum(1.0, self.tau / np.maximum(away, 1e-300)) / points.count
            found = found * (1.0 - share.sum())
            found[:-1] += share
        return found
