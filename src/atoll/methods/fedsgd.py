"""Federated gradient descent: the synchronous baseline of federated averaging."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from atoll.contract import Change, ClientData, Method, Plan, Population, Replies, Reply, Rule, Work
from atoll.methods.parts.buffers import RULES, averaged, form, moved
from atoll.methods.parts.settings import require, typed
from atoll.optimizers import SGD, clip_by_norm, schedule_factor
from atoll.task import Batch, Task
from atoll.tensors import Record

__all__ = ["FedSGD"]


@dataclass(frozen=True, kw_only=True)
class FedSGD(Method):
    """Send one gradient, step on the server.   McMahan et al., AISTATS 2017, section 2

    client:  g_k = grad F_k(w_t)  over all of its data
    server:  w_{t+1} = w_t - lr (sum_k (n_k / n_S) g_k + weight_decay w_t)

    With every client present a round is one step of gradient descent on the pooled data, and FedAvg with one
    epoch and full batches takes the same step.

    Args:
        lr: step size of the server.
        weight_decay: L2, added once, on the server.
        clip: joint norm above which a client's gradient is scaled down; 0 means never.
        schedule: learning rate over rounds, as in FedAvg.

    Traps: a client whose data do not fit in one batch cannot take part, and BatchNorm statistics move by one
    batch a round only.
    """

    lr: float = 0.1
    weight_decay: float = 0.0
    clip: float = 0.0
    schedule: str = "constant"

    rules: ClassVar[Mapping[str, Rule]] = RULES
    change: ClassVar[Change | None] = Change("gradient")
    broadcasts: ClassVar[tuple[str, ...]] = ("params",)
    paper: ClassVar[str] = "McMahan et al. 2017, section 2"
    cost: ClassVar[str] = "1 gradient up, 1 model down"

    def __post_init__(self) -> None:
        typed(self)
        require(self, "lr", self.lr > 0, "must be above 0")
        require(self, "weight_decay", self.weight_decay >= 0, "must not be negative")
        require(self, "clip", self.clip >= 0, "must not be negative (0 means no clipping)")
        schedule_factor(self.schedule, 0)

    # ---- server half -------------------------------------------------------------------------------------

    def setup(self, task: Task, population: Population) -> Record:
        params, buffers = task.initial()
        return Record(params=params, buffers=buffers, round=0)

    def broadcast(self, state: Record, cohort: Sequence[int]) -> Work:
        return Work(Record(params=state.params, buffers=state.buffers))

    def update(self, state: Record, replies: Replies) -> Record:
        lr = self.lr * schedule_factor(self.schedule, state.round)
        descent = SGD(weight_decay=self.weight_decay)
        params, _ = descent.update(replies.mean.gradient, Record(), state.params, lr)
        buffers = averaged(state.buffers, replies.mean)
        return state.replace(params=params, buffers=buffers, round=state.round + 1)

    def expects(self, state: Record) -> Record:
        return Record(gradient=state.params, **form(state.buffers))

    # ---- client half -------------------------------------------------------------------------------------

    def plan(self) -> Plan:
        return Plan(epochs=1, batch_size=None)

    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        zero = torch.zeros_like(data.count)
        return Record(
            received=received,
            memory=memory,
            gradient=received.params.zeros(),
            buffers=received.buffers,
            steps=zero,
            seen=zero,
            loss=zero,
        )

    def step(self, task: Task, local: Record, batch: Batch) -> Record:
        gradient, loss, buffers = task.gradient(local.received.params, local.buffers, batch)
        if self.clip:
            gradient = clip_by_norm(gradient, self.clip)
        rows = batch.mask.sum()
        return local.replace(
            gradient=gradient,
            buffers=buffers,
            steps=local.steps + 1,
            seen=local.seen + rows,
            loss=local.loss + (loss * rows).to(local.loss.dtype),
        )

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        values = Record(
            gradient=local.gradient,
            **moved(local.buffers, local.received.buffers),
        )
        metrics = Record(loss=local.loss, count=local.seen, steps=local.steps)
        return Reply(values, local.seen, metrics), local.memory
