"""The numbers around the middle one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from atoll.robust.median import median
from atoll.robust.rule import Columns

__all__ = ["Meamed", "nearest_mean", "nearest_parts"]


@dataclass(frozen=True)
class Meamed(Columns):
    """The mean of the n - f numbers of each coordinate that are nearest to its median.   Xie et al. 2018

    "Generalized Byzantine-tolerant SGD". With f = 0 the mean.

    Args:
        f: how many clients may lie.
    """

    f: int

    name: ClassVar[str] = "meamed"
    least: ClassVar[tuple[int, int]] = (2, 1)

    def middle(self, ordered: Tensor) -> Tensor:
        return nearest_mean(ordered, ordered.shape[1] - self.f)

    def parts(self, values: Tensor) -> Tensor:
        return nearest_parts(values, values.shape[1] - self.f)


def nearest_mean(ordered: Tensor, many: int) -> Tensor:
    """The mean of the `many` numbers of each row nearest to its median, [k]; rows [k, m] are in ascending order.

    In order they lie side by side: one after the other, whichever end is further from the median goes.
    """
    centre = median(ordered)
    size = ordered.shape[1]
    low = torch.zeros(len(ordered), dtype=torch.int64, device=ordered.device)
    high = torch.full_like(low, size - 1)
    for _ in range(size - many):
        below = centre - ordered.gather(1, low[:, None])[:, 0]
        above = ordered.gather(1, high[:, None])[:, 0] - centre
        left = (below > above).to(low.dtype)
        low, high = low + left, high - (1 - left)
    place = torch.arange(size, device=ordered.device)
    inside = (place >= low[:, None]) & (place <= high[:, None])
    return torch.where(inside, ordered, 0.0).sum(1) / many


def nearest_parts(values: Tensor, many: int) -> Tensor:
    """What each number counts for in that mean, [k, m], for numbers in any order."""
    centre = median(values.sort(dim=1).values)
    nearest = (values - centre[:, None]).abs().argsort(dim=1, stable=True)[:, :many]
    return torch.zeros_like(values).scatter_(1, nearest, 1.0 / many)
