"""Each client is sent some others' models, and moves towards those that do better on its own validation data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from atoll import seeds
from atoll.contract import ClientData, Population, Replies, Reply, Work
from atoll.methods.parts.bank import held, without
from atoll.methods.parts.peers import COMPARED, Peers
from atoll.methods.parts.settings import require
from atoll.task import Batch, Task
from atoll.tensors import Record, Tensors

__all__ = ["FedFomo"]


@dataclass(frozen=True, kw_only=True)
class FedFomo(Peers):
    """Weigh others' models by how much they help this client.   Zhang et al., ICLR 2021

    server:  sends client k up to `models` models theta_j of others: with probability e_t one at random, else the
             one of largest P_kj among those left;  e_t = explore (1 - decay)^t
    client:  a_j = max(0, (L_k(w_k) - L_k(theta_j)) / ||theta_j - w_k||),  L_k the loss on its validation data
             w_k <- w_k + sum_j (a_j / sum_i a_i) (theta_j - w_k),  as it was where all a_j are 0
             w_k <- w_k - lr grad F_k(w_k; batch)  for E epochs;  sends w_k, and the a_j
    server:  P_kj <- P_kj + a_j

    w_k is the model as the client's last round left it. Clients predict with w_k. One without validation samples finds
    no model better than its own, and trains alone; so do all in the first round.

    Args:
        models: how many others' models a client is sent, M in the paper.
        explore: share of random choices in the first round.
        decay: by which part that share falls every round.

    Traps: the losses are those before local training. The a_j are added to P as they are, not divided by their sum. The
    server keeps every model, and sends out `models` of them a client.
    """

    models: int = 5
    explore: float = 0.3
    decay: float = 0.05

    relation: ClassVar[str] = "help by others' models"
    host: ClassVar[tuple[str, ...]] = ("liking",)
    paper: ClassVar[str] = "Zhang et al. 2021 (ICLR)"
    cost: ClassVar[str] = "1 model up, M = 5 down; M + 1 validation passes; 1 remembered"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "models", self.models >= 1, "must be at least 1")
        require(self, "explore", 0 <= self.explore <= 1, "must be in [0, 1]")
        require(self, "decay", 0 <= self.decay <= 1, "must be in [0, 1]")

    @property
    def reads(self) -> tuple[str, ...]:
        return ("validation",)

    # ---- server half -------------------------------------------------------------------------------------

    def setup(self, task: Task, population: Population) -> Record:
        return super().setup(task, population).replace(liking=Record(), seed=population.seed)

    def choice(self, state: Record, client: int) -> list[int]:
        """Whose models this client is sent in the coming round."""
        rng = seeds.rng(state.seed, "fedfomo.choice", state.round, client)
        liked = self.liked(state, client)
        others = [int(other) for other in rng.permutation(held(state.models)) if other != client]
        others.sort(key=lambda other: -liked.get(other, 0.0))
        share = self.explore * (1 - self.decay) ** state.round
        chosen: list[int] = []
        while others and len(chosen) < self.models:
            random = rng.random() < share
            chosen.append(others.pop(int(rng.integers(len(others))) if random else 0))
        return chosen

    def liked(self, state: Record, client: int) -> dict[int, float]:
        """P of this client: other -> sum of a."""
        row = state.liking.get(str(client))
        return {} if row is None else dict(zip(row.others.tolist(), row.sums.tolist(), strict=True))

    def broadcast(self, state: Record, cohort: Sequence[int]) -> Work:
        own = {}
        for client in cohort:
            chosen = self.choice(state, client)
            missing = self.models - len(chosen)
            models = [self.shown(state, other) for other in (*chosen, *[client] * missing)]
            params, buffers = (
                Tensors({n: torch.stack([m[part][n] for m in models]) for n in models[0][part]})
                for part in (0, 1)
            )
            real = torch.tensor([1.0] * len(chosen) + [0.0] * missing)
            own[client] = Record(params=params, buffers=buffers, real=real)
        return replace(super().broadcast(state, cohort), own=own)

    def update(self, state: Record, replies: Replies) -> Record:
        liking = {}
        for client, reply in zip(replies.clients, replies.each, strict=True):
            liked = self.liked(state, client)
            for other, help in zip(self.choice(state, client), reply.values.help.tolist(), strict=False):
                liked[other] = liked.get(other, 0.0) + help
            others = sorted(liked)
            liking[str(client)] = Record(
                others=torch.tensor(others, dtype=torch.int64),
                sums=torch.tensor([liked[other] for other in others], dtype=torch.float64),
            )
        return super().update(state, replies).replace(liking=state.liking.replace(**liking))

    def leave(self, state: Record, clients: Sequence[int]) -> Record:
        state = super().leave(state, clients)
        return state.replace(liking=without(state.liking, clients))

    def expects(self, state: Record) -> Record:
        return super().expects(state).replace(help=torch.zeros(self.models))

    def affinity(self, state: Record) -> tuple[list[int], Tensor] | None:
        """(clients, P [n, n] with each row divided by its largest entry): how much the others' models helped."""
        clients = held(state.models)[:COMPARED]
        if len(clients) < 2:
            return None
        rows = [self.liked(state, client) for client in clients]
        matrix = torch.tensor([[row.get(other, 0.0) for other in clients] for row in rows])
        return clients, matrix / matrix.amax(1, keepdim=True).clamp(min=1e-30)

    # ---- client half -------------------------------------------------------------------------------------

    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        mixed, help = self._mixed(task, received, memory, data.validation)
        local = super().begin(task, Record(lr=received.lr), mixed, data)
        return local.replace(help=help)

    def _mixed(
        self, task: Task, received: Record, memory: Record, validation: Batch | None
    ) -> tuple[Record, Tensor]:
        """The client's model after a step towards the models that help, and a."""
        real = received.real
        if validation is None:
            return memory, torch.zeros_like(real)
        others = [
            tuple(part.map(lambda v, j=j: v[j]) for part in (received.params, received.buffers))
            for j in range(self.models)
        ]
        losses = []
        for params, buffers in ((memory.params, memory.buffers), *others):
            totals = task.totals(params, buffers, validation)
            losses.append(totals.loss / totals.count.clamp(min=1))
        away = [params - memory.params for params, _ in others]
        gains = torch.stack([losses[0] - loss for loss in losses[1:]])
        lengths = torch.stack([step.norm() for step in away]).clamp(min=1e-12)
        help = (gains / lengths).clamp(min=0) * real
        help = torch.where(torch.isfinite(help), help, 0.0).to(real.dtype)
        share = help / help.sum().clamp(min=1e-30)
        params, buffers = memory.params, memory.buffers
        for j, (step, (_, theirs)) in enumerate(zip(away, others, strict=True)):
            params = params + step * share[j]
            buffers = Tensors(
                {
                    n: b + (theirs[n] - memory.buffers[n]) * share[j] if b.is_floating_point() else b
                    for n, b in buffers.items()
                }
            )
        return Record(params=params, buffers=buffers), help

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        reply, own = super().finish(task, local, data)
        return reply._replace(values=reply.values.replace(help=local.help)), own
