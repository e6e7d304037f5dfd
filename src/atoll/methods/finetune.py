"""Federated averaging, then some local training before a client predicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from atoll.contract import ClientData, Plan, Program, Reply
from atoll.methods.fedavg import FedAvg
from atoll.methods.parts.settings import require
from atoll.task import Batch, Task
from atoll.tensors import Record

__all__ = ["FineTune", "Tuned"]


@dataclass(frozen=True, kw_only=True)
class FineTune(FedAvg):
    """Average, then adapt: each client fine-tunes the global model before it predicts.

    client:  as FedAvg;  to predict:  v_k <- w_t;  v_k <- v_k - lr grad F_k(v_k; batch)  for a few epochs
    server:  as FedAvg

    The global model is that of FedAvg, to the bit. The fine-tuned one is made anew from the latest global
    model whenever it is asked for, and forgotten: nothing is kept between rounds. Fine-tuning knows no schedule: its
    rate stays, also where that of the rounds has run out. A plain baseline, and a strong one.

    Args:
        finetune_epochs: local epochs before a client predicts.
        finetune_lr: learning rate of them; none means lr. Where single clients end far below the others, a few steps
            were too large: try a fifth of lr.
    """

    finetune_epochs: int = 1
    finetune_lr: float | None = None

    paper: ClassVar[str] = "baseline; Yu et al. 2020"
    cost: ClassVar[str] = "1 model up, 1 down; more training to predict"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "finetune_epochs", self.finetune_epochs >= 1, "must be at least 1")
        require(self, "finetune_lr", self.finetune_lr is None or self.finetune_lr > 0, "must be above 0")

    def programs(self) -> Mapping[str, Program]:
        return {"personal": Tuned(self, self.finetune_epochs, self.finetune_lr or self.lr)}


@dataclass(frozen=True)
class Tuned(Program):
    """The client program that fine-tunes what `start` makes of the received model, and judges it on the test data."""

    method: FedAvg
    epochs: int
    lr: float

    @property
    def reads(self) -> tuple[str, ...]:
        return ("test",)

    def plan(self) -> Plan:
        return Plan(self.epochs, None, self.method.batch_size)

    def start(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        """The working state to tune."""
        return self.method.begin(task, received, memory, data)

    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        rate = torch.full_like(received.lr, self.lr)  # which knows no schedule
        return self.start(task, received.replace(lr=rate), memory, data)

    def step(self, task: Task, local: Record, batch: Batch) -> Record:
        return self.method.step(task, local, batch)

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        assert data.test is not None
        totals = task.totals(local.params, local.buffers, data.test)
        return Reply(Record(), totals.count, totals), local.memory
