"""Dynamic regularisation: local objectives whose minima agree with the global one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from atoll.contract import ClientData, Population, Replies, Reply
from atoll.methods.fedavg import FedAvg
from atoll.methods.parts.buffers import averaged
from atoll.methods.parts.settings import require
from atoll.task import Batch, Task
from atoll.tensors import Record, Tensors

__all__ = ["FedDyn"]


@dataclass(frozen=True, kw_only=True)
class FedDyn(FedAvg):
    """Tilt every local objective until they share a minimum.   Acar et al., ICLR 2021, Algorithm 1

    client:  w_k ~ argmin F_k(w) - <h_k, w> + alpha/2 ||w - w_t||^2;   h_k <- h_k - alpha (w_k - w_t)
    server:  h <- h - (alpha/N) sum_S (w_k - w_t);   w_{t+1} = mean_S w_k - h / alpha

    Clients count equally, whatever their data. h is the mean of all h_k, always. Where the rounds come to
    rest, h_k is grad F_k and the sum of them is 0: the minimum of the mean of the F_k, however few local
    steps are taken. N are the clients that have not left, those yet to come among them (their h_k are 0): whoever
    leaves takes its F_k out of the objective, and its h_k out of the mean, h <- (N h - sum_gone h_k) / (N - gone).
    Were it kept, rounds would come to rest where the gradients of the others add up to -h_k, and not to 0.

    Args:
        alpha: strength of the pull and of the memory; 0.1 for images, 0.01 or less for MNIST-like tasks.

    Traps: N is the number of all clients that have not left and S those of this round. The authors run it with
    weight_decay=0.001 and clip=10; without them deep networks can leave the finite numbers.
    """

    alpha: float = 0.1

    paper: ClassVar[str] = "Acar et al. 2021, Algorithm 1"
    cost: ClassVar[str] = "1 model up, 1 down; 1 remembered"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "alpha", self.alpha > 0, "must be above 0 (at 0 use FedAvg)")

    # ---- server half -------------------------------------------------------------------------------------

    def setup(self, task: Task, population: Population) -> Record:
        state = super().setup(task, population)
        return state.replace(h=state.params.zeros(), clients=population.clients)

    def update(self, state: Record, replies: Replies) -> Record:
        mean, share = replies.mean, replies.weight / state.clients
        h = state.h - mean["update"] * (self.alpha * share)
        return state.replace(
            params=state.params + mean["update"] - h / self.alpha,
            buffers=averaged(state.buffers, mean),
            h=h,
            round=state.round + 1,
        )

    def farewell(self, state: Record, memory: Record) -> Record:
        return state.replace(h=state.h - memory.h * (1 / state.clients))

    def leave(self, state: Record, clients: Sequence[int]) -> Record:
        rest = max(state.clients - len(clients), 1)
        return state.replace(h=state.h * (state.clients / rest), clients=rest)

    # ---- client half -------------------------------------------------------------------------------------

    def remember(self, task: Task, received: Record) -> Record:
        return Record(h=received.params.zeros())

    def gradient(self, task: Task, local: Record, batch: Batch) -> tuple[Tensors, Record]:
        gradient, local = super().gradient(task, local, batch)
        pull = (local.params - local.received.params) * self.alpha
        return gradient - local.memory.h + pull, local

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        reply, memory = super().finish(task, local, data)
        h = memory.h - reply.values["update"] * self.alpha
        return reply._replace(weight=torch.ones_like(reply.weight)), memory.replace(h=h)
