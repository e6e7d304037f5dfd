"""Less for those that are alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from atoll.robust.points import Points
from atoll.robust.rows import Matrix
from atoll.robust.rule import Rule

__all__ = ["FoolsGold"]


@dataclass(frozen=True)
class FoolsGold(Rule):
    """Clients whose updates point alike count for less: one liar under many names.   Fung et al., RAID 2020

    With s_ij the cosines of updates and v_i the largest of client i, s_ij is pardoned by v_i / v_j where that is below
    1; a_i = 1 - max_j s_ij over the largest a, and then logit(a_i) + 0.5, cut to [0, 1]. The mean is by a. Cosines are
    those of the round's updates, not of all that a client ever sent: a server of many clients cannot keep that. It
    assumes that honest clients' data differ, and no number of liars.
    """

    name: ClassVar[str] = "foolsgold"

    def weights(self, points: Points) -> Matrix:
        count = points.count
        lengths = np.where(points.norms > 0, points.norms, 1.0)
        cosines = points.dots[:count, :count] / np.outer(lengths, lengths)
        np.fill_diagonal(cosines, -1.0)
        most = cosines.max(1)
        less = (most[:, None] > 0) & (most[:, None] < most[None, :])
        alike = (cosines * np.where(less, most[:, None] / np.where(most != 0, most, 1.0)[None, :], 1.0)).max(
            1
        )
        found = np.clip(1.0 - alike, 0.0, 1.0)
        if not found.max() > 0:
            return np.full(count, 1.0 / count)  # all are one: nobody is more of a liar than others
        found = np.clip(found / found.max(), 1e-5, 1 - 1e-5)
        found = np.clip(np.log(found / (1 - found)) + 0.5, 0.0, 1.0)
        shares: Matrix = found / found.sum()
        return shares
