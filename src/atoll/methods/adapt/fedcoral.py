"""Features whose covariance is that of the targets'."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from atoll.methods.adapt.targets import Matched
from atoll.methods.parts.features import features
from atoll.methods.parts.settings import require
from atoll.task import Batch, Task
from atoll.tensors import Record

__all__ = ["FedCORAL", "covariance", "moments"]


@dataclass(frozen=True, kw_only=True)
class FedCORAL(Matched):
    """Give features the targets' covariance.   Sun and Saenko, ECCV 2016 workshops (Deep CORAL), by sums

    source:  w_k <- w_k - lr grad (F_k + lam ||C_k - C||^2 / (4 d^2))(w_k; batch),  C_k the covariance of the batch's
             features f(x) [d],  C the targets'
    target:  sends  n, sum f(x), sum f(x) f(x)'  by the model as it was received, and no model
    server:  as FedAvg over the sources;  C from the targets' sums of this round

    The sums need no more than an addition at the server, so that secure aggregation and noise apply to them. Features
    are what the last layer with parameters reads.

    Args:
        lam: weight of the pull; the gradient is small where features are many, and lam then large. With 0 this is
            FedAvg among the sources, to the bit.

    Traps: batches of fewer samples than there are features have covariances that are mostly chance; take large ones.
    C is one round old. Covariances are over n - 1, as the authors' are.
    """

    lam: float = 10.0

    paper: ClassVar[str] = "Sun and Saenko 2016 (Deep CORAL), federated by sums"
    cost: ClassVar[str] = "1 model and d^2 numbers up and down; 1 more pass"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "lam", self.lam >= 0, "must not be negative")

    def blank(self, width: int) -> Record:
        return Record(covariance=torch.zeros(width, width), known=torch.zeros(()))

    def zeros(self, width: int) -> Record:
        double = torch.float64
        return Record(
            count=torch.zeros((), dtype=double),
            total=torch.zeros(width, dtype=double),
            product=torch.zeros(width, width, dtype=double),
        )

    def sums(self, task: Task, local: Record, data: Batch) -> Record:
        return moments(features(task, local.params, local.buffers, data.inputs), data.mask)

    def learned(self, known: Record, sums: Record) -> Record:
        found = covariance(sums).to(known.covariance.dtype)
        some = sums.count > 1
        return Record(
            covariance=torch.where(some, found, known.covariance),
            known=torch.where(some, torch.ones_like(known.known), known.known),
        )

    def apart(self, local: Record, z: Tensor, mask: Tensor) -> Tensor:
        target = local.received.matched
        mask = mask.to(z.dtype)
        count = mask.sum()
        centred = (z - (mask @ z) / count.clamp(min=1)) * mask.unsqueeze(1)
        own = centred.T @ centred / (count - 1).clamp(min=1)
        gap = torch.sum((own - target.covariance.to(z.dtype)).square()) / (4 * z.shape[1] ** 2)
        found: Tensor = target.known.to(z.dtype) * (count > 1) * gap
        return found


def moments(z: Tensor, mask: Tensor) -> Record:
    """n, sum f and sum f f' of the real rows of z [n, d], in double precision."""
    z, mask = z.to(torch.float64), mask.to(torch.float64)
    kept = z * mask.unsqueeze(1)
    return Record(count=mask.sum(), total=kept.sum(0), product=kept.T @ z)


def covariance(sums: Record) -> Tensor:
    """What moments say of it, [d, d], over n - 1."""
    mean = sums.total / sums.count.clamp(min=1)
    found: Tensor = (sums.product - torch.outer(mean, mean) * sums.count) / (sums.count - 1).clamp(min=1)
    return found
