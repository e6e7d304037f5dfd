"""Normalised averaging: clients that take more steps do not count for more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from atoll.contract import Change, ClientData, Population, Replies, Reply
from atoll.methods.fedavg import FedAvg
from atoll.methods.parts.buffers import averaged, form
from atoll.methods.parts.settings import require
from atoll.optimizers import SGD
from atoll.task import Batch, Task
from atoll.tensors import Record, Tensors

__all__ = ["FedNova"]


@dataclass(frozen=True, kw_only=True)
class FedNova(FedAvg):
    """Average directions and lengths apart.   Wang et al., NeurIPS 2020

    client:  any steps that are linear in the gradients,  w_k - w_t = -lr sum_i a_i g_i;
             sends  d_k = (w_k - w_t) / |a_k|  and  |a_k| = sum_i a_i
    server:  w_{t+1} = w_t + (sum_k p_k |a_k|) sum_k p_k d_k,      p_k = n_k / n_S

    |a_k| is t after t steps of SGD, [t - rho (1 - rho^t) / (1 - rho)] / (1 - rho) with momentum rho, and [1 -
    (1 - lr mu)^t] / (lr mu) with a proximal term. Here it is found for all of them, and together, by the path
    of one number under the same optimiser, whose gradient is always 1. With as many steps at every client
    this is FedAvg.

    Args:
        mu: strength of a proximal term as in FedProx; 0 means none.
        server_momentum: momentum of the server's step; 0 means none.
        partial_work: whether a straggler's fewer epochs are used; otherwise stragglers are dropped.

    Traps: p_k is by all of a client's samples, not by those it had time for. Adam and clipping are not linear
    in the gradients, and refused. With momentum and `mu` together some a_i can be negative; it is their sum
    that removes the bias, not the sum of their sizes.
    """

    mu: float = 0.0
    server_momentum: float = 0.0
    partial_work: bool = True

    change: ClassVar[Change | None] = Change("direction")
    paper: ClassVar[str] = "Wang et al. 2020"
    cost: ClassVar[str] = "1 model and 1 number up, 1 model down"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "mu", self.mu >= 0, "must not be negative")
        require(self, "mu", self.mu * self.lr < 1, "must be below 1 / lr")
        require(self, "server_momentum", 0 <= self.server_momentum < 1, "must be in [0, 1)")
        require(self, "optimizer", self.optimizer == "sgd", 'must be "sgd"')
        require(self, "clip", self.clip == 0, "must be 0")

    # ---- server half -------------------------------------------------------------------------------------

    def setup(self, task: Task, population: Population) -> Record:
        state = super().setup(task, population)
        return state.replace(server=SGD(self.server_momentum).init(state.params))

    def update(self, state: Record, replies: Replies) -> Record:
        mean = replies.mean
        gradient = -mean.direction * mean.length
        params, server = SGD(self.server_momentum).update(gradient, state.server, state.params, 1.0)
        buffers = averaged(state.buffers, mean)
        return state.replace(params=params, buffers=buffers, server=server, round=state.round + 1)

    def expects(self, state: Record) -> Record:
        # a length is one number: any scalar shows its form
        scalar = next(iter(state.params.values())).new_zeros(())
        return Record(direction=state.params, length=scalar, **form(state.buffers))

    # ---- client half -------------------------------------------------------------------------------------

    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        local = super().begin(task, received, memory, data)
        length = Tensors(a=local.steps)
        return local.replace(length=length, pace=self.path().init(length))

    def path(self) -> SGD:
        """The client's optimiser as the length sees it, in units of the learning rate."""
        return SGD(self.momentum, self.nesterov)

    def gradient(self, task: Task, local: Record, batch: Batch) -> tuple[Tensors, Record]:
        gradient, local = super().gradient(task, local, batch)
        if self.mu:
            gradient = gradient + (local.params - local.received.params) * self.mu
        return gradient, local

    def step(self, task: Task, local: Record, batch: Batch) -> Record:
        local = super().step(task, local, batch)
        pull = local.lr * (self.mu + self.weight_decay)
        length, pace = self.path().update(local.length * pull - 1.0, local.pace, local.length, 1.0)
        return local.replace(length=length, pace=pace)

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        reply, memory = super().finish(task, local, data)
        worked = local.steps > 0
        length = local.length["a"]
        values = Record(
            direction=reply.values["update"] / length.where(worked, 1.0),
            length=length,
            buffers=reply.values.buffers,
            counters=reply.values.counters,
        )
        return Reply(values, data.count * worked, reply.metrics), memory
