"""The mean without the ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from atoll.robust.ranks import ranks
from atoll.robust.rule import Columns

__all__ = ["Trimmed"]


@dataclass(frozen=True)
class Trimmed(Columns):
    """The mean of each coordinate without its f largest and f smallest numbers.   Yin et al., ICML 2018, Definition 2

    With f = 0 the mean.

    Args:
        f: how many clients may lie.
    """

    f: int

    name: ClassVar[str] = "trimmed"
    least: ClassVar[tuple[int, int]] = (2, 1)

    def middle(self, ordered: Tensor) -> Tensor:
        return ordered[:, self.f : ordered.shape[1] - self.f].mean(1)

    def parts(self, values: Tensor) -> Tensor:
        place, size = ranks(values), values.shape[1]
        inside = (place >= self.f) & (place < size - self.f)
        return inside.to(values) / (size - 2 * self.f)
