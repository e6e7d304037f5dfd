"""No federation at all: the bar that every federated method has to clear."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from atoll.contract import ClientData, Model, Replies, Reply, Work
from atoll.methods.fedavg import FedAvg
from atoll.task import Task
from atoll.tensors import Record, to_device

__all__ = ["Local"]


@dataclass(frozen=True, kw_only=True)
class Local(FedAvg):
    """Every client trains a model of its own, and talks to nobody.

    client:  w_k <- w_k - lr grad F_k(w_k; batch)  for E epochs a round, from where it stopped
    server:  w stays as it was at the start

    A client's model, buffers included, is its memory; it starts from the task's initial model. A client that
    has never taken part predicts with that one.
    """

    broadcasts: ClassVar[tuple[str, ...]] = ()
    paper: ClassVar[str] = "baseline"
    cost: ClassVar[str] = "nothing"
    mixed: ClassVar[bool] = True

    # ---- server half -------------------------------------------------------------------------------------

    def broadcast(self, state: Record, cohort: Sequence[int]) -> Work:
        work = super().broadcast(state, cohort)
        return replace(work, shared=Record(lr=work.shared.lr))

    def update(self, state: Record, replies: Replies) -> Record:
        return state.replace(round=state.round + 1)

    def expects(self, state: Record) -> Record:
        return Record()

    # ---- client half -------------------------------------------------------------------------------------

    def remember(self, task: Task, received: Record) -> Record:
        params, buffers = task.initial()
        memory = Record(params=params, buffers=buffers)
        return to_device(memory, received.lr.device)  # type: ignore[no-any-return]

    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        own = received.replace(params=memory.params, buffers=memory.buffers)
        return super().begin(task, own, Record(), data)

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        reply, _ = super().finish(task, local, data)
        return reply._replace(values=Record()), Record(params=local.params, buffers=local.buffers)

    def personal(self, received: Record, memory: Record) -> Model:
        return memory.params, memory.buffers
