"""The mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from atoll.robust.points import Points
from atoll.robust.rows import Matrix
from atoll.robust.rule import Rule

__all__ = ["Average"]


@dataclass(frozen=True)
class Average(Rule):
    """The mean of what stands before it, all clients alike.

    By itself it is no protection: one liar moves it anywhere.
    """

    name: ClassVar[str] = "mean"

    def weights(self, points: Points) -> Matrix:
        return np.full(points.count, 1.0 / points.count)
