"""Drawn with replacement by size and loss, and weighed so that the average is everybody's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from atoll.tensors import Record

from .contract import Ask, Choice, Chosen, Floats, Ints, Learned
from .drawing import changed

__all__ = ["Importance"]


@dataclass(frozen=True)
class Importance(Choice):
    """Draws `count` times, with replacement, those more often whose change is likely large, and corrects for it.

    With p_k the client's share of the training samples of all that are there, a draw takes client k with probability

        q_k = (1 - even) p_k sqrt(F_k) / sum_j p_j sqrt(F_j) + even p_k

    and m draws estimate the weighted mean of all changes, sum_k p_k d_k, without bias by (1/m) sum over draws of
    (p_k / q_k) d_k, whatever q is. A client that was drawn c_k times is asked once. Of n clients that are asked, whose
    replies count equally, each has the factor f_k = (n / m) c_k p_k / q_k, so that (1/n) sum_k f_k d_k is the estimate.

    The variance is least for q_k in proportion to p_k |d_k| (Chen, Horvath and Richtarik, "Optimal Client Sampling for
    Federated Learning", arXiv 2010.13723, has it for draws without replacement). How large a change will be is not
    known before it is made, but a bound is: |grad F| <= sqrt(2 L F) for a loss that is never negative and L-smooth. F_k
    is the training loss when the client was last asked, and sqrt(F_k) the mean of the known ones where it never was.
    The even share keeps p_k / q_k below 1 / even where losses have become stale (a defensive mixture: Hesterberg,
    Technometrics 37, 1995).

    `even` = 1 is sampling by size with replacement: MD sampling (Li et al., "On the Convergence of FedAvg on Non-IID
    Data", ICLR 2020, scheme I; Fraboni et al., "Clustered Sampling", ICML 2021, section 2). Clients without samples are
    never drawn. A reply that fails to come makes the estimate smaller. Every draw looks at all clients' sizes.

    Args:
        even: share of the draws that go by size alone, above 0.
    """

    even: float = 0.1

    name = "importance"

    def begin(self, clients: int) -> Record:
        """Everybody's last loss, nan where it is unknown."""
        return Record(loss=torch.full((clients,), torch.nan, dtype=torch.float64))

    def draw(self, state: Record, ask: Ask) -> Chosen:
        """At most `count` clients: fewer where some were drawn more than once."""
        clients = ask.everyone()
        clients = clients[ask.there(clients)]
        share = ask.size(clients).astype(np.float64)
        clients, share = clients[share > 0], share[share > 0]
        if not len(clients) or not ask.count:
            return Chosen([], {}, state)
        share /= share.sum()
        chance = self.chances(share, state.loss.numpy()[clients])
        places, times = np.unique(ask.rng().choice(len(clients), ask.count, p=chance), return_counts=True)
        factors = len(places) / ask.count * times * share[places] / chance[places]
        found: Ints = clients[places]
        return Chosen(found.tolist(), dict(zip(found.tolist(), factors.tolist(), strict=True)), state)

    def chances(self, share: Floats, loss: Floats) -> Floats:
        """q of clients with these shares of samples and last losses (nan: unknown)."""
        known = np.isfinite(loss)
        root = np.sqrt(np.maximum(loss, 0.0), where=known, out=np.ones_like(loss))
        root[~known] = root[known].mean() if known.any() else 1.0
        large = share * root
        if not large.sum():
            return share
        chance: Floats = (1 - self.even) * large / large.sum() + self.even * share
        chance /= chance.sum()
        return chance

    def learn(self, state: Record, learned: Learned) -> Record:
        """Last losses of those whose reply counted."""
        told = learned.told
        return state.replace(loss=changed(state.loss, learned.clients[told], learned.loss[told]))
