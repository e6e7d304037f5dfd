"""Adapters of which one factor stays as it was drawn, so that the mean of the other one is exact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from atoll.contract import Model, Population
from atoll.methods.adapters.factors import a_names, factored
from atoll.methods.fedavg import FedAvg
from atoll.methods.parts.shared import split
from atoll.task import Batch, Task
from atoll.tensors import Record, Tensors, to_device

__all__ = ["FFA", "held"]


@dataclass(frozen=True, kw_only=True)
class FFA(FedAvg):
    """Leave A as it was drawn, train and average B.   Sun et al., ICLR 2024 (FFA-LoRA, arXiv 2403.12313)

    client:  B_k <- B_t, trained as in FedAvg, with A = A_0
    server:  B_{t+1} = sum_k (n_k / n_S) B_k,  so that  B_{t+1} A_0 = sum_k (n_k / n_S) B_k A_0, exactly

    A_0 follows from the run's seed: everybody has it, and it never travels. Noise on B (`channel`, `dp_sgd`) reaches
    the weights once, where noise on A and B is multiplied.

    Traps: half as many numbers are trained, of what A_0 happens to be; the authors take a larger alpha or rate.
    """

    paper: ClassVar[str] = "Sun et al. 2024 (FFA-LoRA)"
    cost: ClassVar[str] = "B of the adapter up and down"
    low_rank: ClassVar[bool] = True
    exact: ClassVar[bool | None] = True

    # ---- server half -----------------------------------------------------------------------------------------

    def setup(self, task: Task, population: Population) -> Record:
        factored(self, task)
        state = super().setup(task, population)
        params, fixed = split(state.params, a_names(task))
        return state.replace(params=params, fixed=fixed)

    def model(self, state: Record) -> Model:
        return Tensors({**state.fixed, **state.params}), state.buffers

    # ---- client half -----------------------------------------------------------------------------------------

    def gradient(self, task: Task, local: Record, batch: Batch) -> tuple[Tensors, Record]:
        return super().gradient(held(task, a_names(task), local.received), local, batch)


def held(task: Task, names: frozenset[str], received: Record) -> Task:
    """The task in which its own parameters of these names, as they were drawn, are not trained."""
    own = Tensors({name: p.detach() for name, p in task.module.named_parameters() if name in names})
    return task.over(to_device(own, received.lr.device))
