"""Control variates that take the drift out of local steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from atoll.contract import ClientData, Population, Replies, Reply, Work
from atoll.methods.fedavg import FedAvg
from atoll.methods.parts.buffers import averaged
from atoll.methods.parts.settings import require
from atoll.task import Batch, Task
from atoll.tensors import Record, Tensors

__all__ = ["Scaffold"]


@dataclass(frozen=True, kw_only=True)
class Scaffold(FedAvg):
    """Correct each step by how the client's gradients differ.   Karimireddy et al., ICML 2020, Algorithm 1

    client:  y_k <- x;  K times  y_k <- y_k - lr (g_k(y_k) - c_k + c);  then
             option 1:  c_k' = grad F_k(x) over all local data
             option 2:  c_k' = c_k - c + (x - y_k) / (K lr)
    server:  x <- x + server_lr mean_S (y_k - x);   c <- c + (1/N) sum_S (c_k' - c_k)

    Clients count equally, whatever their data: the objective is the mean of the F_k. The mean of all c_k is
    c, always. N are the clients that have not left, those yet to come among them (their c_k are 0): whoever
    leaves takes its F_k out of the objective, so that c, which stands for the gradient of that, must be the mean
    of the c_k that remain, c <- (N c - sum_gone c_k) / (N - gone). Were N kept, c would fade as clients leave.

    Args:
        option: how a client renews its control variate: 2 reuses the steps it has taken, 1 is steadier and
            reads all local data once more.
        server_lr: global step size, eta_g in the paper.

    Traps: K is the number of steps this client has really taken, and lr the one in force this round. Option 2
    holds for plain SGD only: with momentum, Adam or clipping (x - y) / (K lr) is no longer a mean of
    gradients.
    """

    option: Literal[1, 2] = 2
    server_lr: float = 1.0

    broadcasts: ClassVar[tuple[str, ...]] = ("params", "control")
    paper: ClassVar[str] = "Karimireddy et al. 2020, Algorithm 1"
    cost: ClassVar[str] = "2 models up, 2 down; 1 remembered"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "option", self.option in (1, 2), "must be 1 or 2")
        require(self, "server_lr", self.server_lr > 0, "must be above 0")
        if self.option == 2:
            require(self, "optimizer", self.optimizer == "sgd", 'must be "sgd" with option=2')
            require(self, "momentum", self.momentum == 0, "must be 0 with option=2")
            require(self, "clip", self.clip == 0, "must be 0 with option=2")

    @property
    def reads(self) -> tuple[str, ...]:
        return ("train",) if self.option == 1 else ()

    # ---- server half -------------------------------------------------------------------------------------

    def setup(self, task: Task, population: Population) -> Record:
        state = super().setup(task, population)
        return state.replace(control=state.params.zeros(), clients=population.clients)

    def broadcast(self, state: Record, cohort: Sequence[int]) -> Work:
        work = super().broadcast(state, cohort)
        return replace(work, shared=work.shared.replace(control=state.control))

    def update(self, state: Record, replies: Replies) -> Record:
        mean, share = replies.mean, replies.weight / state.clients
        return state.replace(
            params=state.params + mean["update"] * self.server_lr,
            buffers=averaged(state.buffers, mean),
            control=state.control + mean.control * share,
            round=state.round + 1,
        )

    def farewell(self, state: Record, memory: Record) -> Record:
        return state.replace(control=state.control - memory.control * (1 / state.clients))

    def leave(self, state: Record, clients: Sequence[int]) -> Record:
        rest = max(state.clients - len(clients), 1)
        return state.replace(control=state.control * (state.clients / rest), clients=rest)

    def expects(self, state: Record) -> Record:
        return super().expects(state).replace(control=state.params)

    # ---- client half -------------------------------------------------------------------------------------

    def remember(self, task: Task, received: Record) -> Record:
        return Record(control=received.params.zeros())

    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        local = super().begin(task, received, memory, data)
        return local.replace(correction=received.control - memory.control)

    def gradient(self, task: Task, local: Record, batch: Batch) -> tuple[Tensors, Record]:
        gradient, local = super().gradient(task, local, batch)
        return gradient + local.correction, local

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        reply, memory = super().finish(task, local, data)
        if self.option == 1:
            assert data.train is not None
            control, _, _ = task.gradient(local.received.params, local.received.buffers, data.train)
            change = control - memory.control
        else:
            travelled = -reply.values["update"] / (local.lr * local.steps.clamp(min=1))
            change = (travelled - local.received.control) * (local.steps > 0)
        reply = Reply(reply.values.replace(control=change), torch.ones_like(reply.weight), reply.metrics)
        return reply, memory.replace(control=memory.control + change)
