"""Adapters whose factors are trained and averaged in turns, so that each mean is exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from atoll.contract import ClientData, Population, Replies, Work
from atoll.methods.adapters.factors import a_names, b_names, read, table
from atoll.methods.adapters.told import heard, lengths, untold
from atoll.methods.fedavg import FedAvg
from atoll.methods.parts.buffers import averaged, form
from atoll.methods.parts.shared import split
from atoll.task import Batch, Task
from atoll.tensors import Record, Tensors, nbytes

__all__ = ["RoLoRA"]


@dataclass(frozen=True, kw_only=True)
class RoLoRA(FedAvg):
    """Train and average B in one round, A in the next.   Chen et al., NeurIPS 2025 (RoLoRA, arXiv 2502.01755)

    client:  round 1, 3 ...:  B_k <- B_t, trained as in FedAvg, with A = A_t
             round 2, 4 ...:  A_k <- A_t, trained as in FedAvg, with B = B_t
    server:  the factor that was trained is averaged; the other one is the same for all, so that B A is averaged exactly

    B comes first: while it is zero, A has no gradient. Whoever took part in the round before needs only the factor that
    has changed since; whoever did not is sent both, and bytes say so.

    Traps: a round trains half of the numbers, so that as many rounds come to half as many steps of each factor.
    """

    broadcasts: ClassVar[tuple[str, ...]] = ()
    paper: ClassVar[str] = "Chen et al. 2025 (RoLoRA)"
    cost: ClassVar[str] = "one factor of the adapter up and down"
    low_rank: ClassVar[bool] = True
    exact: ClassVar[bool | None] = True
    in_step: ClassVar[bool] = True
    alternates: ClassVar[bool] = True
    host: ClassVar[tuple[str, ...]] = ("factors", "told")

    # ---- server half -----------------------------------------------------------------------------------------

    def setup(self, task: Task, population: Population) -> Record:
        state = super().setup(task, population)
        return state.replace(factors=table(self, [task]), told=untold())

    def broadcast(self, state: Record, cohort: Sequence[int]) -> Work:
        work = super().broadcast(state, cohort)
        factor = "A" if state.round % 2 else "B"
        shared = work.shared.replace(turn=Record({factor: torch.zeros(())}))
        whole = nbytes(state.params)
        found = lengths(state.told, cohort, nbytes(shared) - whole, whole, stranger=True)
        return replace(work, shared=shared, lengths=found)

    def update(self, state: Record, replies: Replies) -> Record:
        moved = replies.mean["update"]
        return state.replace(
            params=state.params.map_names(lambda name, old: old + moved[name] if name in moved else old),
            buffers=averaged(state.buffers, replies.mean),
            told=heard(state.told, replies.clients, nbytes(moved), nbytes(state.params)),
            round=state.round + 1,
        )

    def expects(self, state: Record) -> Record:
        names = {each.A if state.round % 2 else each.B for each in read(state.factors)}
        return Record(update=split(state.params, names)[1], **form(state.buffers))

    # ---- client half -----------------------------------------------------------------------------------------

    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        names = a_names(task) if "A" in received.turn else b_names(task)
        fixed, trained = split(received.params, names)
        local = super().begin(task, received.replace(params=trained), memory, data)
        return local.replace(fixed=fixed)

    def gradient(self, task: Task, local: Record, batch: Batch) -> tuple[Tensors, Record]:
        return super().gradient(task.over(local.fixed), local, batch)
