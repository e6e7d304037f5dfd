"""Federated averaging with a proximal term, and inexact local solutions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from atoll.contract import ClientData, Reply
from atoll.methods.fedavg import FedAvg
from atoll.methods.parts.settings import require
from atoll.task import Batch, Task
from atoll.tensors import Record, Tensors, map_leaves

__all__ = ["FedProx"]


@dataclass(frozen=True, kw_only=True)
class FedProx(FedAvg):
    """Pull every client toward the model it received.   Li et al., MLSys 2020, Algorithm 2

    client:  w_k ~ argmin h_k(w) = F_k(w) + mu/2 ||w - w_t||^2,  by w_k <- w_t and steps
             w_k <- w_k - lr (grad F_k(w_k; batch) + mu (w_k - w_t))
             until  ||grad h_k(w_k)|| <= gamma ||grad h_k(w_t)||  or the epochs are over
    server:  w_{t+1} = w_t + sum_k (n_k / n_S) (w_k - w_t)

    With mu = 0, gamma = 0 and the same `partial_work` this is FedAvg to the bit.

    Args:
        mu: strength of the pull; the authors try 0.001, 0.01, 0.1, 0.5 and 1.
        gamma: inexactness at which a client stops before its epochs are over; 0 means it does all of them.
            The gradient in the test is that of all local data, so that each step costs a pass more.
        partial_work: whether a straggler's fewer epochs are used (as the paper does); otherwise stragglers
            are dropped.

    Traps: the square belongs to the term, its gradient is mu (w - w_t) and not a unit vector; and w_t must be
    the model as it was received, not an alias of the one in training. The pull is for parameters, never for
    buffers.
    """

    mu: float = 0.01
    gamma: float = 0.0
    partial_work: bool = True

    paper: ClassVar[str] = "Li et al. 2020, Algorithm 2"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "mu", self.mu >= 0, "must not be negative")
        require(self, "gamma", 0 <= self.gamma < 1, "must be in [0, 1)")
        require(self, "gamma", not self.gamma or not self.weight_decay, "is defined without weight_decay")

    @property
    def reads(self) -> tuple[str, ...]:
        return ("train",) if self.gamma else ()

    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        local = super().begin(task, received, memory, data)
        if not self.gamma:
            return local
        assert data.train is not None
        local = local.replace(data=data.train, going=torch.ones_like(received.lr, dtype=torch.bool))
        return local.replace(goal=self.slope(task, local) * self.gamma)

    def gradient(self, task: Task, local: Record, batch: Batch) -> tuple[Tensors, Record]:
        gradient, local = super().gradient(task, local, batch)
        if self.mu:
            gradient = gradient + (local.params - local.received.params) * self.mu
        return gradient, local

    def slope(self, task: Task, local: Record) -> Tensor:
        """||grad h_k|| at the present parameters, over all local data."""
        return self.gradient(task, local, local.data)[0].norm()

    def step(self, task: Task, local: Record, batch: Batch) -> Record:
        stepped = super().step(task, local, batch)
        if not self.gamma:
            return stepped
        going = local.going
        kept = {
            name: map_leaves(partial(torch.where, going), stepped[name], local[name])
            for name in ("params", "buffers", "optimizer", "steps", "seen", "loss")
        }
        return local.replace(**kept, going=going & (self.slope(task, stepped) > local.goal))

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        reply, memory = super().finish(task, local, data)
        if self.gamma:  # the test has read all of the data, however early the client stopped
            reply = reply._replace(weight=data.count * (local.steps > 0))
        return reply, memory
