"""Federated averaging of the factors of an adapter, each by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from atoll.contract import Population
from atoll.methods.adapters.factors import factored
from atoll.methods.fedavg import FedAvg
from atoll.task import Task
from atoll.tensors import Record

__all__ = ["FedIT"]


@dataclass(frozen=True, kw_only=True)
class FedIT(FedAvg):
    """Average A and B, each by itself.   Zhang et al., ICASSP 2024 (arXiv 2305.05644)

    client:  (A_k, B_k) <- (A_t, B_t), trained as in FedAvg
    server:  A_{t+1} = sum_k (n_k / n_S) A_k;   B_{t+1} = sum_k (n_k / n_S) B_k

    It is FedAvg, to the bit, of a model of which an adapter is trained.

    Traps: a product of means is not the mean of products. The change of the weights is off by
    sum_k p_k B_k A_k - (sum_k p_k B_k) (sum_k p_k A_k), the more so the further clients drift apart; `ffa`, `rolora`,
    `flora` and `fedex` have no such error.
    """

    paper: ClassVar[str] = "Zhang et al. 2024 (FedIT)"
    cost: ClassVar[str] = "1 adapter up, 1 down"

    low_rank: ClassVar[bool] = True
    exact: ClassVar[bool | None] = False

    def setup(self, task: Task, population: Population) -> Record:
        factored(self, task)
        return super().setup(task, population)
