"""As far as they point where the server's own update points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from atoll.robust.points import Points
from atoll.robust.rows import Matrix
from atoll.robust.rule import Rule

__all__ = ["FLTrust"]


@dataclass(frozen=True)
class FLTrust(Rule):
    """Trust by likeness to an update that the server makes of root data.   Cao et al., NDSS 2021

    sum_i T_i (|g_0| / |g_i|) g_i / sum_i T_i with T_i = max(0, cos(g_i, g_0)): every update is as long as the server's,
    and who points against it counts for nothing. No bound on the number of liars; root data must be like everybody's.
    """

    name: ClassVar[str] = "fltrust"
    beside: ClassVar[Literal["centre", "root"] | None] = "root"

    def weights(self, points: Points) -> Matrix:
        dots, count = points.dots, points.count
        own = np.sqrt(max(dots[count, count], 0.0))
        lengths = points.norms
        there = (lengths > 0) & (own > 0)
        scale = np.where(there, lengths, 1.0)
        trust = np.where(there, np.maximum(dots[:count, count] / (scale * (own or 1.0)), 0.0), 0.0)
        total = trust.sum()
        shares = trust * own / scale / total if total > 0 else trust
        return np.append(shares, 0.0)
