"""Federated averaging of factors, and what that lacks added to the base."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from atoll.contract import Mean, Replies
from atoll.methods.adapters.based import Based
from atoll.methods.adapters.factors import mean_product, read, wide
from atoll.tensors import Record

__all__ = ["FedEx"]


@dataclass(frozen=True, kw_only=True)
class FedEx(Based):
    """Average A and B, and add to the base what their product lacks.   Singhal et al., ACL 2025 (arXiv 2410.09432)

    client:  (A_k, B_k) <- (A_t, B_t) over W_t, trained as in FedAvg
    server:  A_{t+1} = sum_k p_k A_k;   B_{t+1} = sum_k p_k B_k,  p_k = n_k / n_S
             W_{t+1} = W_t + scale (sum_k p_k B_k A_k - B_{t+1} A_{t+1})

    The model is then W_t + scale sum_k p_k B_k A_k, exactly. What W moves by is sum_k p_k (B_k - B) (A_k - A), of rank
    (K - 1) r for K clients, and travels as factors of that rank or as weights, whichever is less.
    """

    paper: ClassVar[str] = "Singhal et al. 2025 (FedEx-LoRA)"
    cost: ClassVar[str] = "1 adapter up; 1 down, and the change of the base"

    def update(self, state: Record, replies: Replies) -> Record:
        factors, each = read(state.factors), [reply.values["update"] for reply in replies.each]
        shares = self.shares(replies)
        mean = Mean()
        for client, reply in zip(replies.clients, replies.each, strict=True):
            mean.add(client, reply._replace(values=Record(update=reply.values["update"])))
        reduced = mean.result()
        assert reduced is not None
        centre = reduced.mean["update"]
        changes = [
            mean_product(
                (p, f.scales[0], wide(u[f.A]) - centre[f.A], wide(u[f.B]) - centre[f.B])
                for p, u in zip(shares, each, strict=True)
            )
            for f in factors
        ]
        ranks = [(len(each) - 1) * f.ranks[0] for f in factors]
        moved = self.moved(state, replies, self.beneath(factors, changes), ranks)
        return moved.replace(params=state.params + centre)
