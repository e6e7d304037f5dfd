"""The updates that lie closest together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from atoll.robust.points import Points
from atoll.robust.rows import Matrix
from atoll.robust.rule import Rule

__all__ = ["MDA"]


@dataclass(frozen=True)
class MDA(Rule):
    """Minimum-diameter averaging: the mean of the n - f updates whose largest distance is smallest.

    Rousseeuw 1985; El Mhamdi et al., ICML 2018.   The set is found exactly, by asking of a distance whether
    f updates can be left out for no pair to be further apart: quick where lies stand out, at worst 2^f steps.

    Args:
        f: how many clients may lie.
    """

    f: int

    name: ClassVar[str] = "mda"
    least: ClassVar[tuple[int, int]] = (2, 1)

    def weights(self, points: Points) -> Matrix:
        count = points.count
        order = np.argsort(
            -points.near.sum(1), kind="stable"
        )  # so that nothing depends on how clients are numbered
        squares = points.near[np.ix_(order, order)]
        steps = np.unique(squares)
        low, high, out = 0, len(steps) - 1, _without(squares > steps[-1], self.f)
        while low < high:  # the smallest diameter that leaves n - f
            middle = (low + high) // 2
            found = _without(squares > steps[middle], self.f)
            if found is None:
                low = middle + 1
            else:
                high, out = middle, found
        assert out is not None
        left = sorted(set(range(count)) - set(out))
        spare = count - self.f  # as many as asked for: the nearest to the others, where more could stay
        left = sorted(left, key=lambda at: (float(squares[at, left].max()), float(squares[at, left].sum())))[
            :spare
        ]
        weights = np.zeros(count)
        weights[order[left]] = 1.0 / spare
        return weights


def _without(apart: NDArray[np.bool_], most: int) -> Sequence[int] | None:
    """At most so many points without whom no two are apart (a vertex cover); None where there are no such."""
    degrees = apart.sum(1)
    at = int(degrees.argmax())
    if degrees[at] == 0:
        return []
    if most == 0 or degrees[at] * most < degrees.sum() // 2:  # so few cannot be in all those pairs
        return None
    rest = apart.copy()
    rest[at] = rest[:, at] = False
    found = _without(rest, most - 1)  # this one goes, or all that it is apart from
    if found is not None:
        return [at, *found]
    others = np.flatnonzero(apart[at])
    if len(others) > most:
        return None
    rest = apart.copy()
    rest[others] = rest[:, others] = False
    found = _without(rest, most - len(others))
    return None if found is None else [*others.tolist(), *found]
