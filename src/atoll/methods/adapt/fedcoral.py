"""Features whose covariance is that of the targets'."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from atoll.methods.adapt.targets import SIDES, Matched
from atoll.tensors import Record

__all__ = ["FedCORAL", "covariance", "moments"]


@dataclass(frozen=True, kw_only=True)
class FedCORAL(Matched):
    """Give features the targets' covariance.   Sun and Saenko, ECCV 2016 workshops (Deep CORAL), by sums

    source:  w_k <- w_k - lr grad (F_k + lam ||C_k - C_T||^2 / (4 d^2))(w_k; batch),  C_k the covariance of the
             batch's features f(x) [d]
    target:  w_k <- w_k - lr grad (lam ||C_k - C_S||^2 / (4 d^2))(w_k; batch)
    both:    send  n, sum f(x), sum f(x) f(x)'  by the model as it was received
    server:  w <- w + mean of the sources' updates + mean of the targets';  C_S and C_T from this round's sums

    The sums need no more than an addition at the server, so that secure aggregation and noise apply to them. Features
    are what the last layer with parameters reads.

    Args:
        lam: weight of the pull; the gradient is small where features are many, and lam then large. With 0 this is
            FedAvg among the sources, to the bit.

    Traps: batches of fewer samples than there are features have covariances that are mostly chance; take large ones.
    C_S and C_T are one round old. Covariances are over n, the authors' over n - 1.
    """

    lam: float = 10.0

    paper: ClassVar[str] = "Sun and Saenko 2016 (Deep CORAL), federated by sums"
    cost: ClassVar[str] = "2 models, 2 d^2 numbers up; 1, 2 d^2 down; 2 passes a step"

    def blank(self, width: int) -> Record:
        return Record(covariance=torch.zeros(width, width), known=torch.zeros(()))

    def zeros(self, width: int) -> Record:
        double = torch.float64
        return Record(
            count=torch.zeros((), dtype=double),
            total=torch.zeros(width, dtype=double),
            product=torch.zeros(width, width, dtype=double),
        )

    def sums(self, local: Record, z: Tensor, mask: Tensor) -> Record:
        return moments(z, mask)

    def learned(self, matched: Record, sums: Record) -> Record:
        return Record({side: self._learned(matched[side], sums[side]) for side in SIDES})

    def _learned(self, known: Record, sums: Record) -> Record:
        found = covariance(sums).to(known.covariance.dtype)
        some = sums.count > 0
        return Record(
            covariance=torch.where(some, found, known.covariance),
            known=torch.where(some, torch.ones_like(known.known), known.known),
        )

    def apart(self, local: Record, known: Record, z: Tensor, mask: Tensor) -> Tensor:
        mask = mask.to(z.dtype)
        count = mask.sum()
        centred = (z - (mask @ z) / count.clamp(min=1)) * mask.unsqueeze(1)
        own = centred.T @ centred / count.clamp(min=1)
        gap = torch.sum((own - known.covariance.to(z.dtype)).square()) / (4 * z.shape[1] ** 2)
        found: Tensor = known.known.to(z.dtype) * (count > 1) * gap
        return found


def moments(z: Tensor, mask: Tensor) -> Record:
    """n, sum f and sum f f' of the real rows of z [n, d], in double precision."""
    z, mask = z.to(torch.float64), mask.to(torch.float64)
    kept = z * mask.unsqueeze(1)
    return Record(count=mask.sum(), total=kept.sum(0), product=kept.T @ z)


def covariance(sums: Record) -> Tensor:
    """What moments, all of them divided by whatever number, say of it: [d, d], over n."""
    count = torch.where(sums.count > 0, sums.count, torch.ones_like(sums.count))
    mean = sums.total / count
    found: Tensor = sums.product / count - torch.outer(mean, mean)
    return found
