"""Fair federated averaging: clients that do badly count for more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from atoll.contract import ClientData, Replies, Reply
from atoll.methods.fedavg import FedAvg
from atoll.methods.parts.buffers import averaged
from atoll.methods.parts.settings import require
from atoll.task import Task
from atoll.tensors import Record

__all__ = ["QFedAvg"]


@dataclass(frozen=True, kw_only=True)
class QFedAvg(FedAvg):
    """Weigh clients by a power of their loss.   Li et al., ICLR 2020, Algorithm 2

    objective:  sum_k F_k^(q+1) / (q+1)
    client:  F = F_k(w_t) over all local data, before training;  D_k = w_k - w_t after it;
             sends  F^q D_k  and  h_k = F^q + q F^(q-1) ||D_k||^2 / lr
    server:  w_{t+1} = w_t + sum_S F^q D_k / sum_S h_k

    This is the paper's update with L = 1 / lr divided out of both sums. With q = 0 it is FedAvg with equal
    weights, to the bit; as q grows the losses of the clients draw together, and their mean rises a little.

    Args:
        q: how much fairness; the authors try 0.001 to 15.

    Traps: both sums are over clients, not samples, and the loss is that of the model received: a loss
    measured after training would favour the clients that learn slowly.
    """

    q: float = 0.1

    paper: ClassVar[str] = "Li et al. 2020, Algorithm 2"
    cost: ClassVar[str] = "1 model and 1 number up, 1 model down; a pass over the data"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "q", self.q >= 0, "must not be negative")

    @property
    def reads(self) -> tuple[str, ...]:
        return ("train",)

    def update(self, state: Record, replies: Replies) -> Record:
        mean = replies.mean
        return state.replace(
            params=state.params + mean["update"] / mean.h,
            buffers=averaged(state.buffers, mean),
            round=state.round + 1,
        )

    def expects(self, state: Record) -> Record:
        scalar = next(iter(state.params.values())).new_zeros(())
        return super().expects(state).replace(h=scalar)

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        reply, memory = super().finish(task, local, data)
        assert data.train is not None
        totals = task.totals(local.received.params, local.received.buffers, data.train)
        loss = totals.loss / totals.count + 1e-10
        update = reply.values["update"]
        h = loss**self.q + self.q * loss ** (self.q - 1) * update.dot(update) / local.lr
        values = reply.values.replace(update=update * loss**self.q, h=h)
        return Reply(values, torch.ones_like(reply.weight), reply.metrics), memory
