"""Clients with models of their own, each drawn to the models that are like it already."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from atoll.contract import ClientData, Work
from atoll.methods.parts.bank import held
from atoll.methods.parts.peers import COMPARED, Peers
from atoll.methods.parts.settings import require
from atoll.task import Batch, Task
from atoll.tensors import Record, Tensors

__all__ = ["FedAMP", "HeurFedAMP"]


@dataclass(frozen=True, kw_only=True)
class Messages(Peers):
    """The server mixes the bank anew for each client, and the client is pulled to the mixture.

    Args:
        alpha: step size of message passing; the pull is its inverse times `lam`.
        lam: strength of the pull towards u_k.
    """

    alpha: float = 1.0
    lam: float = 0.1

    cost: ClassVar[str] = "1 model up, 1 down; 1 remembered"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "alpha", self.alpha >= 0, "must not be negative")
        require(self, "lam", self.lam >= 0, "must not be negative")

    # ---- server half -------------------------------------------------------------------------------------

    @abstractmethod
    def weights(self, state: Record, mine: Tensor, bank: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
        """(weight of each model of the bank for each client, step size alpha_k of each client).

        `mine` [K, d] are the clients' models, `bank` [n, d] all known ones, and `same` [K, n] says which of the
        latter is the client's own: it has weight 0.
        """

    def broadcast(self, state: Record, cohort: Sequence[int]) -> Work:
        known = held(state.models)
        mine, bank = self.rows(state, cohort), self.rows(state, known)
        same = torch.tensor(cohort).unsqueeze(1) == torch.tensor(known, dtype=torch.int64)
        weights, step = self.weights(state, mine, bank, same.to(mine.device))
        total = weights.sum(1)
        clouds = mine + (weights @ bank - total.unsqueeze(1) * mine)
        pulls = torch.where(total > 0, self.lam / step.clamp(min=1e-300), 0.0)
        own = {
            client: Record(
                cloud=Tensors(
                    {n: v.to(state.params[n].dtype) for n, v in state.params.unflat(cloud).items()}
                ),
                pull=pull.float(),
            )
            for client, cloud, pull in zip(cohort, clouds, pulls, strict=True)
        }
        return replace(super().broadcast(state, cohort), own=own)

    # ---- client half -------------------------------------------------------------------------------------

    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        local = super().begin(task, received, memory, data)
        return local.replace(cloud=received.cloud, pull=torch.minimum(received.pull, 1 / received.lr))

    def gradient(self, task: Task, local: Record, batch: Batch) -> tuple[Tensors, Record]:
        gradient, local = super().gradient(task, local, batch)
        return gradient + (local.params - local.cloud) * local.pull, local


@dataclass(frozen=True, kw_only=True)
class FedAMP(Messages):
    """Pass messages between clients whose models are close.   Huang et al., AAAI 2021, Algorithm 1

    server:  x_kj = ||w_k - w_j||^2;  A'(x) = exp(-x / sigma) / sigma
             alpha_k = min(alpha, (1 - self_weight) / sum_{j != k} A'(x_kj))
             u_k = (1 - alpha_k sum_{j != k} A'(x_kj)) w_k + alpha_k sum_{j != k} A'(x_kj) w_j
    client:  w_k ~ argmin F_k(w) + lam / (2 alpha_k) ||w - u_k||^2,  by steps from its own w_k
             w_k <- w_k - lr (grad F_k(w_k; batch) + lam / alpha_k (w_k - u_k))

    j runs over all clients that have ever taken part, each with the model that it showed last. A client that no
    message reaches (in the first round, or with alpha = 0) trains alone, without the pull; with alpha = 0 or lam = 0
    this is local training, to the bit. Clients predict with w_k.

    Args:
        alpha: step size of message passing; lowered where a client's own weight in u_k would fall below `self_weight`.
        self_weight: the least weight of the client's own model in u_k. The paper asks for an alpha that is small
            enough for u_k to be a convex combination, which an own weight of 0 also is.
        lam: strength of the pull towards u_k. lam / alpha_k counts as 1 / lr at most, where one step ends at u_k.
        sigma: the distance over which attention falls, in units of `unit`.
        unit: unit of squared distances: "median" is that of the pairs at hand, so that `sigma` means the same for
            small and large models, early and late; "absolute" is the paper's 1.

    Traps: distances are squared, and grow with the size of the model. The pull must see w_k as it trains, not a
    detached copy of where it started, or it does nothing.
    """

    alpha: float = 0.1
    self_weight: float = 0.5
    lam: float = 0.01
    sigma: float = 0.25
    unit: Literal["median", "absolute"] = "median"

    relation: ClassVar[str] = "attention between models"
    paper: ClassVar[str] = "Huang et al. 2021, Algorithm 1"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "self_weight", 0 <= self.self_weight < 1, "must be in [0, 1)")
        require(self, "sigma", self.sigma > 0, "must be above 0")
        require(self, "unit", self.unit in ("median", "absolute"), "must be median or absolute")

    def weights(self, state: Record, mine: Tensor, bank: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
        attention = self._attention(mine, bank, same) / self.sigma
        total = attention.sum(1)
        step = ((1 - self.self_weight) / total.clamp(min=1e-300)).clamp(max=self.alpha)
        return attention * step.unsqueeze(1), step

    def _attention(self, mine: Tensor, bank: Tensor, same: Tensor) -> Tensor:
        """exp(-x / sigma), and 0 for the client itself."""
        squares = torch.cdist(mine, bank, compute_mode="donot_use_mm_for_euclid_dist").square()
        pairs = squares[~same]
        if self.unit == "median" and pairs.numel():
            squares = squares / pairs.median().clamp(min=1e-300)
        return torch.exp(-squares / self.sigma).masked_fill(same, 0.0)

    def affinity(self, state: Record) -> tuple[list[int], Tensor] | None:
        """(clients, exp(-x / sigma) [n, n]) of the models shown last: sigma times A', 1 on the diagonal."""
        clients = held(state.models)[:COMPARED]
        if len(clients) < 2:
            return None
        rows = self.rows(state, clients)
        own = torch.eye(len(clients), dtype=torch.bool, device=rows.device)
        return clients, self._attention(rows, rows, own).masked_fill(own, 1.0)


@dataclass(frozen=True, kw_only=True)
class HeurFedAMP(Messages):
    """Pass messages by the cosine of models, with a fixed own weight.   Huang et al., AAAI 2021 (HeurFedAMP)

    server:  u_k = self_weight w_k + (1 - self_weight) sum_{j != k} xi_kj w_j
             xi_kj = softmax over j != k of temperature cos(w_k, w_j)
    client:  w_k ~ argmin F_k(w) + lam / (2 alpha) ||w - u_k||^2,  by steps from its own w_k

    Meant for large models, whose distances say little. With self_weight = 1, or lam = 0, this is local training, to
    the bit: a client that no message reaches feels no pull.

    Args:
        alpha: the pull is lam / alpha; at most 1 / lr.
        self_weight: the client's own weight in u_k.
        temperature: how much more like models count, sigma in the paper.
        centred: whether cosines are those of w - w_0, what clients have learnt, rather than of the models, which
            all point where the initial one does.

    Traps: from a common initial model the cosines of whole models are all near 1, and the weights nearly equal.
    """

    lam: float = 1.0
    self_weight: float = 0.5
    temperature: float = 10.0
    centred: bool = True

    relation: ClassVar[str] = "cosines of models"
    paper: ClassVar[str] = "Huang et al. 2021 (AAAI), HeurFedAMP"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "alpha", self.alpha > 0, "must be above 0")
        require(self, "self_weight", 0 <= self.self_weight <= 1, "must be in [0, 1]")
        require(self, "temperature", self.temperature >= 0, "must not be negative")

    def weights(self, state: Record, mine: Tensor, bank: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
        scores = (self.temperature * self._cosines(state, mine, bank)).masked_fill(same, -torch.inf)
        messages = torch.nan_to_num(torch.softmax(scores, 1)) * (1 - self.self_weight)  # nan: no others
        return messages, torch.full_like(mine[:, 0], self.alpha)

    def _cosines(self, state: Record, mine: Tensor, bank: Tensor) -> Tensor:
        if self.centred:
            start = state.params.flat().double()
            mine, bank = mine - start, bank - start
        norms = mine.norm(dim=1).unsqueeze(1) * bank.norm(dim=1)
        cosines: Tensor = mine @ bank.T / norms.clamp(min=1e-300)
        return cosines

    def affinity(self, state: Record) -> tuple[list[int], Tensor] | None:
        """(clients, cosines [n, n]) of the models shown last, less the initial one where `centred`."""
        clients = held(state.models)[:COMPARED]
        if len(clients) < 2:
            return None
        rows = self.rows(state, clients)
        return clients, self._cosines(state, rows, rows)
