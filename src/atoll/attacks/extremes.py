"""Send what is as far off as it can be without being the one that stands out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from atoll.attacks.lie import Lie, Seen
from atoll.spec import Parameter

__all__ = ["MinMax", "MinSum"]

Direction = Literal["std", "unit", "sign"]
_DIRECTION = Parameter(
    "direction", '"std", "unit" or "sign"', {each: each for each in ("std", "unit", "sign")}.__getitem__, True
)


def _away(others: Tensor, direction: Direction) -> Tensor:
    """Where to: against the deviations, the mean's direction, or its signs (the paper's three perturbations)."""
    mean = others.mean(0)
    if direction == "std":
        return -others.std(0, correction=0)
    return -mean.sign() if direction == "sign" else -mean / mean.norm().clamp(min=1e-30)


def _apart(others: Tensor) -> Tensor:
    """Squared distances of all pairs [n, n]: from differences, since these are small beside the updates."""
    return torch.stack([(others - each).square().sum(1) for each in others])


@dataclass(frozen=True)
class MinMax(Lie):
    """As far off as two honest clients are apart.   Shejwalkar and Houmansadr, NDSS 2021, Min-Max

    The farthest from the honest mean that is no farther from any honest client than two of them are from each other:

    u <- mean + gamma * p, with the largest gamma for which max_i |u - g_i| <= max_ij |g_i - g_j|, and p against the
    deviations of the honest clients, their mean ("unit") or its signs ("sign"). Each i gives a quadratic equation for
    gamma, so that no search is needed.
    """

    direction: Direction = "std"

    name: ClassVar[str] = "minmax"
    parameters: ClassVar[tuple[Parameter, ...]] = (_DIRECTION,)
    looks: ClassVar[bool] = True

    def sent(self, seen: Seen) -> Tensor:
        others, mean, p = seen.others, seen.others.mean(0), _away(seen.others, self.direction)
        length = p.square().sum().double()
        if length == 0:
            return mean
        off = mean - others
        slope, room = (off @ p).double(), (_apart(others).max() - off.square().sum(1)).double()
        gamma = (-slope + (slope.square() + length * room).clamp(min=0).sqrt()) / length
        return mean + float(gamma.min().clamp(min=0)) * p


@dataclass(frozen=True)
class MinSum(Lie):
    """As far off, in sum, as the honest client that is most.   Shejwalkar and Houmansadr, NDSS 2021, Min-Sum

    The farthest from the honest mean that is no farther from all honest clients together than one of them is:

    u <- mean + gamma * p, with the largest gamma for which sum_i |u - g_i|^2 <= max_i sum_j |g_i - g_j|^2, and p as in
    min-max. The left side is sum_i |mean - g_i|^2 + n gamma^2 |p|^2.
    """

    direction: Direction = "std"

    name: ClassVar[str] = "minsum"
    parameters: ClassVar[tuple[Parameter, ...]] = (_DIRECTION,)
    looks: ClassVar[bool] = True

    def sent(self, seen: Seen) -> Tensor:
        others, mean, p = seen.others, seen.others.mean(0), _away(seen.others, self.direction)
        length = float(p.square().sum())
        if length == 0:
            return mean
        room = float(_apart(others).sum(1).max() - (others - mean).square().sum())
        return mean + math.sqrt(max(0.0, room) / (len(others) * length)) * p
