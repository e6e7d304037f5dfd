"""A fair and robust compromise: a model of the client's own, pulled toward the one it received."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from atoll.contract import ClientData, Model, Reply
from atoll.methods.fedavg import FedAvg
from atoll.methods.parts.settings import require
from atoll.optimizers import clip_by_norm
from atoll.task import Batch, Task
from atoll.tensors import Record, to_device

__all__ = ["Ditto"]


@dataclass(frozen=True, kw_only=True)
class Ditto(FedAvg):
    """Train a model of the client's own beside the shared one, pulled toward it.   Li et al., ICML 2021, Algorithm 1

    client:  w_k <- w_t, trained as in FedAvg;  and on the same batches, from where it stopped last,
             v_k <- v_k - lr (grad F_k(v_k; batch) + lam (v_k - w_t))
    server:  as FedAvg, of the w_k

    The global model is that of FedAvg, to the bit. A client predicts with v_k; v_k starts as the task's initial
    model. With lam = 0 it is the model of local training, to the bit; a great lam keeps it at w_t.

    Args:
        lam: strength of the pull, lambda in the paper, which tries 0.05, 0.1, 0.2, 1 and 2. Steps are stable
            below lr * lam = 2.

    Traps: w_t is the model as it was received this round, not w_k, which moves under the pull's feet; and the
    two models must not share an optimiser's state. The pull is for parameters, never for buffers.
    """

    lam: float = 1.0

    paper: ClassVar[str] = "Li et al. 2021, Algorithm 1"
    cost: ClassVar[str] = "1 model up, 1 down; 1 remembered; twice the training"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "lam", self.lam >= 0, "must not be negative")

    def remember(self, task: Task, received: Record) -> Record:
        params, buffers = task.initial()
        return to_device(Record(params=params, buffers=buffers), received.lr.device)  # type: ignore[no-any-return]

    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        local = super().begin(task, received, Record(), data)
        return local.replace(own=memory, own_optimizer=self.solver().init(memory.params))

    def step(self, task: Task, local: Record, batch: Batch) -> Record:
        own = local.own
        gradient, _, buffers = task.gradient(own.params, own.buffers, batch)
        if self.lam:
            gradient = gradient + (own.params - local.received.params) * self.lam
        if self.clip:
            gradient = clip_by_norm(gradient, self.clip)
        params, optimizer = self.solver().update(gradient, local.own_optimizer, own.params, local.lr)
        local = local.replace(own=Record(params=params, buffers=buffers), own_optimizer=optimizer)
        return super().step(task, local, batch)

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        return super().finish(task, local, data)[0], local.own

    def personal(self, received: Record, memory: Record) -> Model:
        return memory.params, memory.buffers
