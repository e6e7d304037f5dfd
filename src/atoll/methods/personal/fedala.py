"""Adaptive local aggregation: how much of the received model a client takes, weight by weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.func import grad

from atoll import seeds
from atoll.contract import ClientData, Program, Reply
from atoll.methods.fedavg import FedAvg
from atoll.methods.parts.settings import require
from atoll.task import Batch, Task
from atoll.tensors import Record, Tensors

__all__ = ["FedALA"]


@dataclass(frozen=True, kw_only=True)
class FedALA(FedAvg):
    """Learn, weight by weight, how much of the received model to take.   Zhang et al., AAAI 2023, Algorithm 1

    client:  for each tensor of the top layers, with w_p the model the client ended its last round with,
             u = w_p + (w_t - w_p) a;   several times  a <- clip(a - ala_lr grad_u F_k(u; D) (w_t - w_p), 0, 1),
             D a random part of the client's data and all else that of w_t;
             w_k <- u in the top layers and w_t below them, trained as in FedAvg
    server:  as FedAvg

    A client predicts with u (and w_t below), made from the latest w_t; then what it has learnt of a is forgotten.
    a starts at 1, which is w_t, and is remembered from round to round: with ala_steps = 0, and in its first
    round, a client does FedAvg, to the bit.

    Args:
        layers: how many of the top layers are aggregated so, counted in modules that have parameters of their own.
        share: the part of its data on which a client learns a, another each round.
        ala_lr: step size for a.
        ala_steps: steps for a, each over D as a whole, every round. The paper reads D in batches, until its loss
            is steady in a client's first such round and once through in later ones.

    Traps: the gradient is multiplied by (w_t - w_p) elementwise, which is the chain rule for u. The loss is seen with
    u in place, not w_p, and a is clipped after every step. w_p is what the client had trained, not what the
    server made of it.
    """

    layers: int = 1
    share: float = 0.8
    ala_lr: float = 1.0
    ala_steps: int = 5

    paper: ClassVar[str] = "Zhang et al. 2023 (FedALA), Algorithm 1"
    cost: ClassVar[str] = "1 model up, 1 down; top layers remembered twice; ala_steps passes more"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "layers", self.layers >= 1, "must be at least 1")
        require(self, "share", 0 < self.share <= 1, "must be in (0, 1]")
        require(self, "ala_lr", self.ala_lr > 0, "must be above 0")
        require(self, "ala_steps", self.ala_steps >= 0, "must not be negative")

    @property
    def reads(self) -> tuple[str, ...]:
        return ("train",) if self.ala_steps else ()

    def programs(self) -> Mapping[str, Program]:
        return {"personal": Aggregated(self)}

    def remember(self, task: Task, received: Record) -> Record:
        last = top(received.params, self.layers)
        return Record(last=last, weights=last.map(torch.ones_like))

    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        params, weights = self.aggregate(task, received, memory, data)
        local = super().begin(task, received, memory.replace(weights=weights), data)
        return local.replace(params=params, optimizer=self.solver().init(params))

    def aggregate(
        self, task: Task, received: Record, memory: Record, data: ClientData
    ) -> tuple[Tensors, Tensors]:
        """The model the client starts from, and the renewed weights a."""
        theirs, weights = top(received.params, self.layers), memory.weights
        gap = theirs - memory.last
        if data.train is not None and self.ala_steps:
            batch = sampled(data.train, self.share)

            def loss(upper: Tensors) -> Tensor:
                return task.loss(Tensors({**received.params, **upper}), received.buffers, batch)[0]

            for _ in range(self.ala_steps):
                slope = grad(loss)(between(theirs, gap, weights))
                weights = Tensors(
                    {n: (a - self.ala_lr * slope[n] * gap[n]).clamp(0, 1) for n, a in weights.items()}
                )
        return Tensors({**received.params, **between(theirs, gap, weights)}), weights

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        reply, memory = super().finish(task, local, data)
        return reply, memory.replace(last=top(local.params, self.layers))


@dataclass(frozen=True)
class Aggregated(Program):
    """The client program that aggregates the received model with the client's and judges it on the test data."""

    method: FedALA

    @property
    def reads(self) -> tuple[str, ...]:
        return (*self.method.reads, "test")

    def remember(self, task: Task, received: Record) -> Record:
        return self.method.remember(task, received)

    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        params, _ = self.method.aggregate(task, received, memory, data)
        return Record(params=params, buffers=received.buffers, memory=memory)

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        assert data.test is not None
        totals = task.totals(local.params, local.buffers, data.test)
        return Reply(Record(), totals.count, totals), local.memory


def top(params: Tensors, layers: int) -> Tensors:
    """The tensors of the last modules (so many of them) that have parameters of their own."""
    owners = list(dict.fromkeys(name.rpartition(".")[0] for name in params))[-layers:]
    return Tensors({name: value for name, value in params.items() if name.rpartition(".")[0] in owners})


def between(theirs: Tensors, gap: Tensors, weights: Tensors) -> Tensors:
    """w_p + (w_t - w_p) a, written so that a = 1 gives w_t to the bit."""
    return Tensors({n: value - gap[n] * (1 - weights[n]) for n, value in theirs.items()})


def sampled(batch: Batch, share: float) -> Batch:
    """A random part of a batch, of at least one sample."""
    draws = torch.where(batch.mask > 0, seeds.uniform(batch.key, (len(batch.mask),)), 2.0)
    chosen = draws <= draws.min().clamp(min=share)
    return batch._replace(mask=batch.mask * chosen)
