"""The mean of the products, and its best approximation of each client's rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from atoll.methods.adapters.factors import Factors, wide
from atoll.methods.adapters.ranked import Ranked, Sent
from atoll.tensors import Record, Tensors

__all__ = ["FlexLoRA", "best"]


@dataclass(frozen=True, kw_only=True)
class FlexLoRA(Ranked):
    """Average the products, give each client what its rank holds of them.   Bai et al., NeurIPS 2024 (FlexLoRA)

    client:  (A_k, B_k) <- the first r_k rows of V' and columns of U S, trained as in FedAvg
    server:  U S V' = sum_k p_k scale_k B_k A_k, a singular value decomposition,  p_k = n_k / n_S

    Of all matrices of rank r_k, what a client is given is nearest to the mean (Eckart and Young 1936). Ranks may differ
    from client to client (adapter = "lora:4,8 / lora:16,32"). The decomposition is that of the factors' triangles
    (QR), of at most sum_k r_k rows, not of the weight. The global model is what a client of the first adapter gets:
    name the largest first.

    Traps: what is beyond the largest rank is lost in every round.
    """

    paper: ClassVar[str] = "Bai et al. 2024 (FlexLoRA)"
    cost: ClassVar[str] = "1 adapter up, 1 down, of the client's rank"
    exact: ClassVar[bool | None] = False

    def combined(self, state: Record, factors: Sequence[Factors], sent: Mapping[str, list[Sent]]) -> Record:
        whole = dict(state.whole)
        for each in factors:
            old = state.whole[each.A]
            a = torch.cat([one.A for one in sent[each.weight]])
            b = torch.cat([one.B * one.share for one in sent[each.weight]], dim=1)
            found_a, found_b = best(a, b, old.shape[0])
            if short := len(old) - len(found_a):  # fewer rows were sent: the others go on from nothing
                found_a = beside(found_a, wide(old[-short:]))
                found_b = torch.cat([found_b, found_b.new_zeros(len(found_b), short)], dim=1)
            whole |= {each.A: found_a.to(old.dtype), each.B: found_b.to(old.dtype)}
        return state.replace(whole=Tensors(whole))


def best(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors A [rank, in], with orthonormal rows, and B [out, rank] of the nearest matrix of that rank to `b @ a`.

    `a` is [R, in] and `b` is [out, R] for any R; there are fewer rows than `rank` where R is less.
    """
    left, r = torch.linalg.qr(wide(b))
    right, s = torch.linalg.qr(wide(a).t())
    u, values, v = torch.linalg.svd(r @ s.t(), full_matrices=False)
    return (v @ right.t())[:rank], (left @ (u * values))[:, :rank]


def beside(rows: Tensor, others: Tensor) -> Tensor:
    """Orthonormal rows, and behind them what these others have beside them, orthonormal as well."""
    full, _ = torch.linalg.qr(torch.cat([rows, others]).t())
    return torch.cat([rows, full[:, len(rows) :].t()])
