"""Federated averaging, and the local solver that its descendants share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from atoll.contract import Change, ClientData, Method, Plan, Population, Replies, Reply, Rule, Work
from atoll.methods.parts.buffers import RULES, averaged, form, moved
from atoll.methods.parts.settings import require, typed
from atoll.optimizers import SGD, Adam, Optimizer, clip_by_norm, schedule_factor
from atoll.task import Batch, Task
from atoll.tensors import Record, Tensors

__all__ = ["FedAvg"]


@dataclass(frozen=True, kw_only=True)
class FedAvg(Method):
    """Train locally, average by samples.   McMahan et al., AISTATS 2017, Algorithm 1

    client:  w_k <- w_t;  for each batch of E epochs:  w_k <- w_k - lr grad F_k(w_k; batch)
    server:  w_{t+1} = w_t + sum_k (n_k / n_S) (w_k - w_t)

    Args:
        lr: client learning rate.
        epochs: local epochs a round.
        steps: local steps a round instead of epochs; a client then weighs what it has read, at most its samples.
        batch_size: samples a batch; None means all of a client's data.
        optimizer: client optimiser, "sgd", "adam" or "adamw"; its state starts anew every round.
        momentum, nesterov: for "sgd".
        weight_decay: L2 for "sgd" and "adam", decoupled for "adamw".
        clip: joint gradient norm above which a gradient is scaled down; 0 means never.
        schedule: learning rate over rounds: "constant", "exponential:0.99", "step:30,0.1", "cosine:200",
            "warmup:10 + cosine:200" (see `atoll.optimizers.schedule_factor`).
        partial_work: whether a straggler's fewer epochs are used; otherwise stragglers are dropped.
    """

    lr: float = 0.1
    epochs: int = 1
    steps: int | None = None
    batch_size: int | None = 32
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    clip: float = 0.0
    schedule: str = "constant"
    partial_work: bool = False

    rules: ClassVar[Mapping[str, Rule]] = RULES
    change: ClassVar[Change | None] = Change("update")
    broadcasts: ClassVar[tuple[str, ...]] = ("params",)
    paper: ClassVar[str] = "McMahan et al. 2017, Algorithm 1"

    def __post_init__(self) -> None:
        typed(self)
        require(self, "lr", self.lr > 0, "must be above 0")
        require(self, "epochs", self.epochs >= 1, "must be at least 1")
        require(self, "steps", self.steps is None or self.steps >= 1, "must be at least 1")
        require(
            self, "batch_size", self.batch_size is None or self.batch_size >= 1, "must be at least 1, or full"
        )
        require(self, "momentum", 0 <= self.momentum < 1, "must be in [0, 1)")
        require(self, "nesterov", not self.nesterov or self.momentum > 0, "needs momentum above 0")
        require(self, "momentum", not self.momentum or self.optimizer == "sgd", 'is for optimizer="sgd"')
        require(self, "weight_decay", self.weight_decay >= 0, "must not be negative")
        require(self, "clip", self.clip >= 0, "must not be negative (0 means no clipping)")
        require(self, "optimizer", self.optimizer in ("sgd", "adam", "adamw"), "must be sgd, adam or adamw")
        schedule_factor(self.schedule, 0)

    # ---- server half -----------------------------------------------------------------------------------------

    def setup(self, task: Task, population: Population) -> Record:
        params, buffers = task.initial()
        return Record(params=params, buffers=buffers, round=0)

    def broadcast(self, state: Record, cohort: Sequence[int]) -> Work:
        lr = self.lr * schedule_factor(self.schedule, state.round)
        return Work(Record(params=state.params, buffers=state.buffers, lr=torch.tensor(lr)))

    def update(self, state: Record, replies: Replies) -> Record:
        return state.replace(
            params=state.params + replies.mean.update,
            buffers=averaged(state.buffers, replies.mean),
            round=state.round + 1,
        )

    def expects(self, state: Record) -> Record:
        return Record(update=state.params, **form(state.buffers))

    # ---- client half -----------------------------------------------------------------------------------------

    def plan(self) -> Plan:
        return Plan(self.epochs, self.steps, self.batch_size)

    def solver(self) -> Optimizer:
        """The client's optimiser."""
        if self.optimizer == "sgd":
            return SGD(self.momentum, self.nesterov, self.weight_decay)
        return Adam(weight_decay=self.weight_decay, decoupled=self.optimizer == "adamw")

    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        zero = torch.zeros_like(received.lr)
        return Record(
            params=received.params,
            buffers=received.buffers,
            received=received,
            memory=memory,
            optimizer=self.solver().init(received.params),
            lr=received.lr,
            steps=zero,
            seen=zero,
            loss=zero,
        )

    def gradient(self, task: Task, local: Record, batch: Batch) -> tuple[Tensors, Record]:
        """The direction a step descends, and the working state with the batch's new buffers and loss in it."""
        gradient, loss, buffers = task.gradient(local.params, local.buffers, batch)
        return gradient, self.tallied(local, batch, loss, buffers)

    def tallied(self, local: Record, batch: Batch, loss: Tensor, buffers: Tensors) -> Record:
        """The working state after a batch with this mean loss and these buffers."""
        rows = batch.mask.sum()
        total = local.loss + (loss * rows).to(local.loss.dtype)
        return local.replace(buffers=buffers, loss=total, seen=local.seen + rows)

    def step(self, task: Task, local: Record, batch: Batch) -> Record:
        gradient, local = self.gradient(task, local, batch)
        if self.clip:
            gradient = clip_by_norm(gradient, self.clip)
        params, optimizer = self.solver().update(gradient, local.optimizer, local.params, local.lr)
        return local.replace(params=params, optimizer=optimizer, steps=local.steps + 1)

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        values = Record(
            update=local.params - local.received.params,
            **moved(local.buffers, local.received.buffers),
        )
        weight = torch.minimum(local.seen, data.count)  # the samples that were used
        return Reply(
            values, weight, Record(loss=local.loss, count=local.seen, steps=local.steps)
        ), local.memory
