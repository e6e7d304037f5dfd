"""Factors of unequal ranks, padded with zeros and averaged by how much they say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from atoll.adapters import pairs
from atoll.contract import Population
from atoll.methods.adapters.factors import Factors
from atoll.methods.adapters.ranked import Ranked, Sent
from atoll.methods.parts.bank import without
from atoll.methods.parts.settings import require
from atoll.task import Batch, Task
from atoll.tensors import Record, Tensors

__all__ = ["HetLoRA"]


@dataclass(frozen=True, kw_only=True)
class HetLoRA(Ranked):
    """Pad to the largest rank, average by ||B_k A_k||, prune what fades.   Cho et al., EMNLP 2024 (HetLoRA)

    client:  (A_k, B_k) <- the first r_k rows of A and columns of B, trained as in FedAvg, with
             decay |B_k[:, s:]| |A_k[s:]| added to the loss, s = gamma r_k
    server:  A = sum_k p_k pad(A_k);   B = sum_k p_k pad(B_k),   p_k = ||B_k A_k|| / sum_j ||B_j A_j||
             r_k <- s, and the rest is left out, where |B_k[:, s:]| |A_k[s:]| is less than it was sent

    Norms are Frobenius', those of p_k over all layers together. Pruning needs no word of the client: the server has
    both numbers. Ranks may differ from the start (adapter = "lora:4,8 / lora:16,32"). The global model is what a client
    of the first adapter gets: name the largest first.

    Args:
        gamma: share of its rank that a client keeps when it prunes; 1 means never.
        decay: weight of the penalty on what might be pruned.
        least: rank that nobody goes below.

    Traps: as FedIT, a product of means is not the mean of products. A client counts by the size of its update, not by
    its samples. Ranks never grow again.
    """

    gamma: float = 0.99
    decay: float = 0.0005
    least: int = 1

    paper: ClassVar[str] = "Cho et al. 2024 (HetLoRA)"
    cost: ClassVar[str] = "1 adapter up, 1 down, of the client's rank"
    exact: ClassVar[bool | None] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "gamma", 0 < self.gamma <= 1, "must be above 0 and at most 1")
        require(self, "decay", self.decay >= 0, "must not be negative")
        require(self, "least", self.least >= 1, "must be at least 1")

    # ---- server half -----------------------------------------------------------------------------------------

    def setup(self, task: Task, population: Population) -> Record:
        return super().setup(task, population).replace(pruned=Record())

    def leave(self, state: Record, clients: Sequence[int]) -> Record:
        return state.replace(pruned=without(state.pruned, clients))

    def rank(self, state: Record, factors: Factors, client: int) -> int:
        pruned = state.pruned.get(str(client))
        return factors.rank(client) if pruned is None else int(pruned[factors.weight])

    def kept(self, rank: int) -> int:
        """The rank that is left of one."""
        return max(min(self.least, rank), int(self.gamma * rank))

    def combined(self, state: Record, factors: Sequence[Factors], sent: Mapping[str, list[Sent]]) -> Record:
        clients = [one.client for one in sent[factors[0].weight]]
        ranks = {k: {each.weight: self.rank(state, each, k) for each in factors} for k in clients}
        for each in factors:
            for one in sent[each.weight]:
                s = self.kept(len(one.A))
                before = tail(state.whole[each.A][: len(one.A)], state.whole[each.B][:, : len(one.A)], s)
                if s < len(one.A) and float(tail(one.A, one.B, s)) < float(before):
                    ranks[one.client][each.weight] = s
        squares = torch.zeros(len(clients), dtype=torch.float64)
        for each in factors:
            for at, one in enumerate(sent[each.weight]):
                a, b = self._cut(one, ranks[one.client][each.weight])
                squares[at] += ((a @ a.t()) * (b.t() @ b)).sum().double().cpu()
        norms = squares.clamp(min=0).sqrt()
        shares = (
            norms / norms.sum() if float(norms.sum()) else torch.full_like(norms, 1 / len(norms))
        ).tolist()
        whole = dict(state.whole)
        for each in factors:
            a, b = torch.zeros_like(whole[each.A]), torch.zeros_like(whole[each.B])
            for share, one in zip(shares, sent[each.weight], strict=True):
                rank = ranks[one.client][each.weight]
                left = self._cut(one, rank)
                a[:rank] += left[0] * share
                b[:, :rank] += left[1] * share
            whole |= {each.A: a, each.B: b}
        known = {str(k): Record(found) for k, found in ranks.items()}
        return state.replace(whole=Tensors(whole), pruned=state.pruned.replace(**known))

    @staticmethod
    def _cut(one: Sent, rank: int) -> tuple[Tensor, Tensor]:
        return one.A[:rank], one.B[:, :rank]

    # ---- client half -----------------------------------------------------------------------------------------

    def gradient(self, task: Task, local: Record, batch: Batch) -> tuple[Tensors, Record]:
        gradient, local = super().gradient(task, local, batch)
        if not self.decay or self.gamma == 1:
            return gradient, local
        more = dict(gradient)
        for pair in pairs(task.module):
            a, b = local.params[pair.A], local.params[pair.B]
            s = self.kept(len(a))
            if s == len(a):
                continue
            tail_a, tail_b = a[s:], b[:, s:]
            norm_a, norm_b = (torch.linalg.vector_norm(part) for part in (tail_a, tail_b))
            more[pair.A] = gradient[pair.A] + _below(
                a, s, tail_a * (self.decay * norm_b / norm_a.clamp(min=1e-12))
            )
            more[pair.B] = gradient[pair.B] + _beside(
                b, s, tail_b * (self.decay * norm_a / norm_b.clamp(min=1e-12))
            )
        return Tensors(more), local


def tail(a: Tensor, b: Tensor, start: int) -> Tensor:
    """|B[:, start:]| |A[start:]|, a scalar."""
    found: Tensor = torch.linalg.vector_norm(a[start:]) * torch.linalg.vector_norm(b[:, start:])
    return found


def _below(a: Tensor, start: int, rows: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(a[:start]), rows])


def _beside(b: Tensor, start: int, columns: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(b[:, :start]), columns], dim=1)
