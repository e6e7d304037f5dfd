"""The larger cluster, cut to the usual length, with noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from atoll.robust.points import Points
from atoll.robust.rows import Matrix
from atoll.robust.rule import Rule

__all__ = ["Flame"]


@dataclass(frozen=True)
class Flame(Rule):
    """Cluster by direction, cut to the median norm, blur.   Nguyen et al., USENIX Security 2022

    Of updates that are joined from the smallest cosine distance on, the first cluster of more than half counts: what
    HDBSCAN finds for a cluster of at least n/2 + 1. The mean of x_i min(1, S / |x_i|) over it, S the median norm of
    all, has noise of the deviation share * S added.

    Args:
        share: of the noise in the median norm.
    """

    share: float = 0.001

    name: ClassVar[str] = "flame"
    least: ClassVar[tuple[int, int]] = (0, 3)

    def __post_init__(self) -> None:
        self._require("share", self.share >= 0, "must not be negative")

    def weights(self, points: Points) -> Matrix:
        norms = points.norms
        inside = _larger(points)
        cut = np.minimum(1.0, np.median(norms) / np.maximum(norms, 1e-300))
        found: Matrix = np.where(inside, cut, 0.0) / inside.sum()
        return found

    def noise(self, points: Points) -> float:
        return float(self.share * np.median(points.norms))


def _larger(points: Points) -> NDArray[np.bool_]:
    """Who is in the first cluster of more than half, joining the nearest first, [n]."""
    count = points.count
    lengths = np.where(points.norms > 0, points.norms, 1.0)
    apart = 1.0 - points.dots[:count, :count] / np.outer(lengths, lengths)
    cluster = np.arange(count)
    inside: NDArray[np.bool_] = cluster == 0
    rows, columns = np.triu_indices(count, 1)
    for at in np.argsort(apart[rows, columns], kind="stable"):
        cluster[cluster == cluster[columns[at]]] = cluster[rows[at]]
        inside = cluster == cluster[rows[at]]
        if 2 * np.count_nonzero(inside) > count:
            break
    return inside
