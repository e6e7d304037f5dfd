"""The middle one of the numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from atoll.robust.ranks import ranks
from atoll.robust.rule import Columns

__all__ = ["Median", "median"]


@dataclass(frozen=True)
class Median(Columns):
    """The median of each coordinate, of an even number the mean of both middle ones.   Yin et al., ICML 2018, Def. 1

    Sound while fewer than half are lies. Where honest clients differ, it lies further from their mean than most rules
    (put `nnm` before it).
    """

    name: ClassVar[str] = "median"

    def middle(self, ordered: Tensor) -> Tensor:
        return median(ordered)

    def parts(self, values: Tensor) -> Tensor:
        size = values.shape[1]
        low, high = (size - 1) // 2, size // 2
        place = ranks(values)
        return ((place == low).to(values) + (place == high).to(values)) / 2


def median(ordered: Tensor) -> Tensor:
    """The middle of each row [k, m] of numbers in order, [k]."""
    half = ordered.shape[1] // 2
    return ordered[:, half].clone() if ordered.shape[1] % 2 else ordered[:, half - 1 : half + 1].mean(1)
