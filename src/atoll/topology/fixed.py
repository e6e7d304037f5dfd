"""Shares of a sum as whole numbers modulo 2^32, which somebody can add up who must not know any one of them.

    q_j = round(W_ij x_j / step),  step = R 2^(h - 29),  2^h the least power of two not below 1 and sum_j W_ij, j != i

With |x_j| <= R and W_ii <= 1 the sum over j lies within 2^30, but for the roundings: it is exact whatever the order,
and takes half of what 32 bits can say. What is left by masks that do not cancel is anywhere in them, and so is told
from a sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from atoll.errors import CodecError, RunError

__all__ = ["Fixed", "within"]

_BITS = 29
_ROUNDED = 1 << 20  # neighbours whose roundings have room


@dataclass(frozen=True)
class Fixed:
    """How what one peer hears, and its own value, become shares of a sum.

    Args:
        range: R; values lie within [-R, R].
        heard: what all that it hears counts for together, its own left out.
    """

    range: float
    heard: float

    @staticmethod
    def of(range: float, weights: Sequence[float], own: int) -> Fixed:
        """For a row of weights, in which the peer's own is at place `own`."""
        return Fixed(range, math.fsum(weight for at, weight in enumerate(weights) if at != own))

    @property
    def step(self) -> float:
        """What one of the whole numbers means."""
        return self.range * 2.0 ** (math.ceil(math.log2(max(1.0, self.heard - 1e-9))) - _BITS)

    def share(self, value: Tensor, weight: float) -> Tensor:
        """What a value adds to the sum by its weight, int32.  Raises RunError for numbers that are not `within`."""
        return within(value, self.range).double().mul_(weight / self.step).round_().to(torch.int32)

    def opened(self, total: Tensor, like: Tensor) -> Tensor:
        """What the sum of all shares, int32, means, in the type of `like`.  Raises CodecError for what is no sum."""
        found = total.double()
        if found.numel() and float(found.abs().amax()) > (1 << _BITS + 1) + _ROUNDED:
            raise CodecError("what was said does not add up to a sum of models")
        return found.mul_(self.step).to(like.dtype)


def within(value: Tensor, range: float) -> Tensor:
    """The value, whose numbers lie within [-range, range].  Raises RunError for others, and for what is not finite."""
    far = float(value.abs().amax()) if value.numel() else 0.0
    if not far <= range:
        raise RunError(
            f"a model to be mixed has a number of {far:.6g}, and masks carry {range:g} at most",
            hint=f'if models may be like that, mixing = "masked:{2.0 ** math.ceil(math.log2(2 * far)):g}"'
            if math.isfinite(far)
            else "it has diverged: lower lr",
        )
    return value
