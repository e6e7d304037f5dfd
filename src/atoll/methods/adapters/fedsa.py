"""Adapters of which one factor is shared and the other one stays with the client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from atoll.contract import Population
from atoll.methods.adapters.factors import b_names, factored
from atoll.methods.parts.shared import PartlyShared
from atoll.task import Task
from atoll.tensors import Record

__all__ = ["FedSA"]


@dataclass(frozen=True, kw_only=True)
class FedSA(PartlyShared):
    """Average A, keep B.   Guo et al., ICLR 2025 (FedSA-LoRA, arXiv 2410.01463)

    client:  (A_k, B_k) <- (A_t, B_k as this client left it), trained as in FedAvg;  A_k - A_t is sent
    server:  A_{t+1} = A_t + sum_k (n_k / n_S) (A_k - A_t)

    A learns what clients have in common, B what is theirs. B_k starts at zero, for every client, and never travels.
    The global model is the base alone, since the initial B is zero: look at the personal ones.
    """

    paper: ClassVar[str] = "Guo et al. 2025 (FedSA-LoRA)"
    cost: ClassVar[str] = "A of the adapter up and down; B remembered"
    low_rank: ClassVar[bool] = True

    def setup(self, task: Task, population: Population) -> Record:
        factored(self, task)
        return super().setup(task, population)

    def private(self, task: Task) -> frozenset[str]:
        return b_names(task)
