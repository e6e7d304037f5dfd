"""As many models as there are kinds of clients; each client finds out which is its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from atoll import seeds
from atoll.contract import ClientData, Model, Population, Program, Replies, Reply, Work
from atoll.methods.fedavg import FedAvg
from atoll.methods.parts.peers import COMPARED, advanced, noted, shares
from atoll.methods.parts.settings import require
from atoll.task import Task
from atoll.tensors import Record, Tensors

__all__ = ["IFCA"]


@dataclass(frozen=True, kw_only=True)
class IFCA(FedAvg):
    """Train the best of several models, average by cluster.   Ghosh et al., NeurIPS 2020, Algorithm 1

    client:  j = argmin_j F_k(theta_j) over its training data;  w_k <- theta_j
             w_k <- w_k - lr grad F_k(w_k; batch)  for E epochs;  sends w_k - theta_j, and j
    server:  theta_j <- theta_j + sum_{k chose j} (n_k / n_j) (w_k - theta_j);  as it was if nobody chose it

    This is the paper's model averaging. With clusters = 1 it is FedAvg, to the bit. A client predicts with the model
    that it would choose now, also before its first round. The global model is the mean of the theta_j by the
    samples that chose them last, for reference.

    Args:
        clusters: how many models, k in the paper.
        spread: how far the models start from the initial one: each weight is mixed with `spread` parts of normal
            noise of the standard deviation of its tensor, which keeps the deviation. Tensors whose values are
            all equal (biases at 0, scales at 1) start alike, and the first model starts as the initial one.
            The choice among near-random models decides which clusters form: if two kinds of clients share a
            model, try another seed, or more clusters.

    Traps: clients download every model each round. A model that starts worse than another for all clients may never
    be chosen.
    """

    clusters: int = 2
    spread: float = 1.0

    reduction: ClassVar[Literal["mean", "each"]] = "each"
    relation: ClassVar[str] = "same cluster"
    host: ClassVar[tuple[str, ...]] = ("groups",)
    paper: ClassVar[str] = "Ghosh et al. 2020, Algorithm 1"
    cost: ClassVar[str] = "1 model up, one a cluster down; a training pass for each"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "clusters", self.clusters >= 1, "must be at least 1")
        require(self, "spread", self.spread >= 0, "must not be negative")

    @property
    def reads(self) -> tuple[str, ...]:
        return ("train",)

    def programs(self) -> Mapping[str, Program]:
        return {"personal": Chosen(self)}

    # ---- server half -------------------------------------------------------------------------------------

    def setup(self, task: Task, population: Population) -> Record:
        state = super().setup(task, population)
        drawn = [self._drawn(state.params, population.seed, j) for j in range(self.clusters)]
        nobody = torch.zeros(0, dtype=torch.int64)
        return state.replace(
            cluster_params=_stack(drawn),
            cluster_buffers=_stack([state.buffers] * self.clusters),
            groups=Record(clients=nobody, group=nobody.clone()),
        )

    def _drawn(self, params: Tensors, seed: int, cluster: int) -> Tensors:
        """Where a cluster's model starts."""
        if cluster == 0:
            return params
        key = torch.tensor(seeds.address(seed, "ifca.init", client=cluster))
        drawn = {}
        for at, (name, value) in enumerate(params.items()):
            deviation = (value - value.mean()).square().mean().sqrt()
            noise = seeds.normal(seeds.fold(key, at), value.shape, value.dtype) * deviation
            drawn[name] = (
                value.mean() + (value - value.mean() + self.spread * noise) / (1 + self.spread**2) ** 0.5
            )
        return Tensors(drawn)

    def broadcast(self, state: Record, cohort: Sequence[int]) -> Work:
        lr = super().broadcast(state, cohort).shared.lr
        return Work(Record(params=state.cluster_params, buffers=state.cluster_buffers, lr=lr))

    def update(self, state: Record, replies: Replies) -> Record:
        each = dict(zip(replies.clients, replies.each, strict=True))
        choice = {client: int(reply.values.choice.argmax()) for client, reply in each.items()}
        models, weights = [], []
        for j in range(self.clusters):
            own = {client: reply for client, reply in each.items() if choice[client] == j}
            models.append(advanced(*self.cluster(state, j), own))
            weights.append(float(sum(float(reply.weight) for reply in own.values())))
        params, buffers = shares(models, weights)
        return state.replace(
            params=params,
            buffers=buffers,
            cluster_params=_stack([model[0] for model in models]),
            cluster_buffers=_stack([model[1] for model in models]),
            groups=noted(state.groups, choice),
            round=state.round + 1,
        )

    def cluster(self, state: Record, cluster: int) -> Model:
        """The model of one cluster."""
        params, buffers = state.cluster_params, state.cluster_buffers
        return params.map(lambda v: v[cluster]), buffers.map(lambda v: v[cluster])

    def expects(self, state: Record) -> Record:
        return super().expects(state).replace(choice=torch.zeros(self.clusters))

    def affinity(self, state: Record) -> tuple[list[int], Tensor] | None:
        """(clients, matrix [n, n]): 1 for two clients that chose the same cluster when last asked, else 0."""
        clients, group = state.groups.clients[:COMPARED], state.groups.group[:COMPARED]
        if len(clients) < 2:
            return None
        return clients.tolist(), (group.unsqueeze(1) == group).float()

    # ---- client half -------------------------------------------------------------------------------------

    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        assert data.train is not None
        losses = []
        for j in range(self.clusters):
            params, buffers = (part.map(lambda v, j=j: v[j]) for part in (received.params, received.buffers))
            losses.append(task.totals(params, buffers, data.train).loss)
        scores = torch.stack(losses)
        at = torch.where(torch.isfinite(scores), scores, torch.inf).argmin()
        own = Record(
            params=received.params.map(lambda v: v.index_select(0, at.view(1)).squeeze(0)),
            buffers=received.buffers.map(lambda v: v.index_select(0, at.view(1)).squeeze(0)),
            lr=received.lr,
        )
        choice = (torch.arange(self.clusters, device=at.device) == at).to(received.lr.dtype)
        return super().begin(task, own, memory, data).replace(choice=choice)

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        reply, memory = super().finish(task, local, data)
        return reply._replace(values=reply.values.replace(choice=local.choice)), memory


@dataclass(frozen=True)
class Chosen(Program):
    """The client program that judges the model which the client would choose now."""

    method: IFCA

    @property
    def reads(self) -> tuple[str, ...]:
        return ("train", "test")

    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        return self.method.begin(task, received, memory, data)

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        assert data.test is not None
        totals = task.totals(local.params, local.buffers, data.test)
        return Reply(Record(), totals.count, totals), local.memory


def _stack(models: Sequence[Tensors]) -> Tensors:
    return Tensors({name: torch.stack([model[name] for model in models]) for name in models[0]})
