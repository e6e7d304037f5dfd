"""Inherited private models: what a client was before teaches what it becomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from atoll.contract import ClientData, Model, Reply, Work
from atoll.methods.fedavg import FedAvg
from atoll.methods.parts.features import features, gradient_with
from atoll.methods.parts.settings import require
from atoll.task import Batch, Task
from atoll.tensors import Record, Tensors

__all__ = ["FedPHP"]


@dataclass(frozen=True, kw_only=True)
class FedPHP(FedAvg):
    """Let each client inherit a private model, and learn from it.   Li et al., ECML PKDD 2021, Algorithm 1

    client:  w_k <- w_t;  w_k <- w_k - lr grad ((1 - lam) F_k + lam MMD^2(z, z_p))(w_k; batch),
             z, z_p the features that w_k and the private model p_k make of the batch;
             then  p_k <- m p_k + (1 - m) w_k,  m = mu min(1, round / horizon),  at first p_k <- w_k
    server:  as FedAvg

    A client predicts with p_k, and with the global model before it has taken part. Early private models are worth
    little and are all but replaced; the later the round, the more they are kept. With lam = 0 the global model
    is that of FedAvg, to the bit.

    Args:
        mu: how much of the private model is kept in the end.
        lam: weight of the likeness of features against the training loss, in [0, 1).
        horizon: rounds after which mu is reached; the paper's is the number of all rounds.

    Traps: the private model inherits from the model after local training, not from the received one, which would
    make it a mean of global models. MMD is taken over real samples only. Its kernel is a sum of three Gaussians
    exp(-d^2 / s) with s 1/2, 1 and 2 times the mean of |z_p|^2: widths by the distances within a batch would make
    the pull of a batch of one sample the stronger, the nearer z is to z_p.
    """

    mu: float = 0.9
    lam: float = 0.1
    horizon: int = 100

    paper: ClassVar[str] = "Li et al. 2021 (FedPHP), Algorithm 1"
    cost: ClassVar[str] = "1 model up, 1 down; 1 remembered; 1 more forward pass a step"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "mu", 0 <= self.mu <= 1, "must be in [0, 1]")
        require(self, "lam", 0 <= self.lam < 1, "must be in [0, 1)")
        require(self, "horizon", self.horizon >= 1, "must be at least 1")

    def broadcast(self, state: Record, cohort: Sequence[int]) -> Work:
        work = super().broadcast(state, cohort)
        kept = torch.tensor(self.mu * min(1.0, state.round / self.horizon))
        return replace(work, shared=work.shared.replace(kept=kept))

    def remember(self, task: Task, received: Record) -> Record:
        met = torch.zeros_like(received.lr)
        return Record(params=received.params, buffers=received.buffers, met=met)

    def gradient(self, task: Task, local: Record, batch: Batch) -> tuple[Tensors, Record]:
        if not self.lam:
            return super().gradient(task, local, batch)
        private = features(task, local.memory.params, local.memory.buffers, batch.inputs)
        share: Tensor = self.lam * local.memory.met  # a new client has nothing to inherit

        def taught(loss: Tensor, z: Tensor) -> Tensor:
            return loss * (1 - share) + discrepancy(z, private, batch.mask) * share

        gradient, loss, buffers = gradient_with(task, local.params, local.buffers, batch, taught)
        return gradient, self.tallied(local, batch, loss, buffers)

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        reply, old = super().finish(task, local, data)
        kept = local.received.kept * old.met
        private = {
            part: Tensors({n: inherited(old[part][n], v, kept) for n, v in local[part].items()})
            for part in ("params", "buffers")
        }
        return reply, Record(**private, met=torch.ones_like(old.met))

    def personal(self, received: Record, memory: Record) -> Model:
        def chosen(part: str) -> Tensors:
            return Tensors(
                {n: torch.where(memory.met > 0, v, received[part][n]) for n, v in memory[part].items()}
            )

        return chosen("params"), chosen("buffers")


def inherited(old: Tensor, new: Tensor, kept: Tensor) -> Tensor:
    """kept * old + (1 - kept) * new; of integers the new."""
    return old * kept + new * (1 - kept) if new.is_floating_point() else new


def discrepancy(one: Tensor, other: Tensor, mask: Tensor) -> Tensor:
    """Squared maximum mean discrepancy of the rows of [b, d] and [b, d] where `mask` is 1 (the biased estimate).

    The kernel is a sum of Gaussians whose widths go by the size of `other`, which is held fixed.
    """
    rows, weights = torch.cat([one, other]), torch.cat([mask, -mask])
    squares = rows.square().sum(1)
    distances = (squares[:, None] + squares - 2 * rows @ rows.T).clamp(min=0)
    count = mask.sum().clamp(min=1)
    width = ((other.square().sum(1) * mask).sum() / count).clamp(min=1e-12)
    kernel = torch.stack([torch.exp(-distances / (scale * width)) for scale in (0.5, 1.0, 2.0)]).sum(0)
    return (kernel * (weights[:, None] * weights)).sum() / count.square()
