"""Updates cut to a length, before a rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from atoll.robust.points import Points
from atoll.robust.rows import Matrix
from atoll.robust.rule import Before, Draw

__all__ = ["ARC", "Shorten"]


@dataclass(frozen=True)
class Shorten(Before):
    """Every update cut to a norm: x <- x min(1, tau / |x|). The server does it, so that nobody can leave it out.

    Args:
        tau: the norm.
    """

    tau: float

    name: ClassVar[str] = "clip"

    def __post_init__(self) -> None:
        self._require("tau", self.tau > 0, "must be above 0")

    def mix(self, points: Points, liars: int, draw: Draw) -> Matrix:
        return _cut(points.norms, self.tau)


@dataclass(frozen=True)
class ARC(Before):
    """Adaptive robust clipping: the longest are cut to the norm of the next.   Allouah et al., ICLR 2025

    Of n updates the floor(2 (f/n) (n - f)) longest are cut to the norm of the one after them. Unlike a fixed norm it
    harms no guarantee of a rule behind it.

    Args:
        f: how many clients may lie; by default as the rule behind it says.
    """

    f: int | None = None

    name: ClassVar[str] = "arc"
    counts: ClassVar[bool] = True
    least: ClassVar[tuple[int, int]] = (2, 1)

    def mix(self, points: Points, liars: int, draw: Draw) -> Matrix:
        count = points.count
        cut = 2 * liars * (count - liars) // count
        return _cut(points.norms, float(np.sort(points.norms)[count - cut - 1]))


def _cut(norms: Matrix, longest: float) -> Matrix:
    return np.diag(np.minimum(1.0, longest / np.maximum(norms, 1e-300)))
