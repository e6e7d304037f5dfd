"""One model until clients turn out to pull apart, then one for each side, and so on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atoll.contract import Model, Population, Replies, Reply, Work
from atoll.methods.fedavg import FedAvg
from atoll.methods.parts.peers import COMPARED, advanced, noted, shares
from atoll.methods.parts.settings import require
from atoll.task import Task
from atoll.tensors import Record, Tensors

__all__ = ["CFL", "bipartition"]

_ROOT = 0


@dataclass(frozen=True, kw_only=True)
class CFL(FedAvg):
    """Split clients in two where their updates cancel.   Sattler et al., IEEE TNNLS 2021

    client:  as FedAvg, from the model theta of its cluster:  d_k = w_k - theta
    server:  for each cluster C, over its clients in the cohort:
             if ||sum_k (n_k / n_C) d_k|| < eps1 and max_k ||d_k|| > eps2, the model suits the cluster as a whole
             but not its clients: C is split in two by the cosines of the d_k, and either part goes on with
             theta + its own mean of d_k;  else  theta <- theta + sum_k (n_k / n_C) d_k

    Until the first split this is FedAvg, to the bit. Clusters stay a tree, as in the paper. A client that was not in
    the cohort when its cluster was split, and one that comes later, gets the model at which a split was made, and
    goes to the side whose mean direction its update then resembles more; one round for every split on its way, in
    which its update counts for nothing else. Until then it predicts with that model. The global model is the mean
    of the clusters' models by their clients, for reference.

    Args:
        eps1: a cluster may be split when the norm of its mean update is below this,
        eps2: and the largest norm of an update in it above this.
        unit: what `eps1` and `eps2` are multiples of: "first" is the mean norm of the updates of the first round,
            whatever the model and the learning rate; "absolute" is 1, where the authors use eps1=0.4 and eps2=1.6.
        start: no split before so many rounds.
        least: no split of a cluster with fewer replies in a round.
        linkage: "complete" agglomerative clustering, as in the authors' code; "single" minimises the largest cosine
            between the two sides, as in the paper, and tends to split off single clients.
        gamma: split only if the largest cosine between the sides is below sqrt((1 - gamma) / 2), as it is where
            updates are within gamma of their expectation; None does not ask.

    Traps: norms are of whole updates, and depend on the local steps, so that absolute values suit one setting only.
    Both thresholds are about updates near a stationary point: where a high rate keeps them noisy, eps1 is never
    met. Clients with very few samples disagree within their kind as well, and are split further; eps2, least or
    gamma stop that.
    """

    eps1: float = 0.3
    eps2: float = 0.5
    unit: Literal["first", "absolute"] = "first"
    start: int = 20
    least: int = 3
    linkage: Literal["complete", "single"] = "complete"
    gamma: float | None = None

    reduction: ClassVar[Literal["mean", "each"]] = "each"
    relation: ClassVar[str] = "cosines of updates"
    host: ClassVar[tuple[str, ...]] = ("groups", "last")
    broadcasts: ClassVar[tuple[str, ...]] = ()
    paper: ClassVar[str] = "Sattler et al. 2021 (TNNLS)"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "eps1", self.eps1 >= 0, "must not be negative (0 means no split)")
        require(self, "eps2", self.eps2 >= 0, "must not be negative")
        require(self, "unit", self.unit in ("first", "absolute"), "must be first or absolute")
        require(self, "start", self.start >= 0, "must not be negative")
        require(self, "least", self.least >= 2, "must be at least 2")
        require(self, "linkage", self.linkage in ("complete", "single"), "must be complete or single")
        require(self, "gamma", self.gamma is None or 0 <= self.gamma <= 1, "must be in [0, 1], or none")

    # ---- server half -------------------------------------------------------------------------------------

    def setup(self, task: Task, population: Population) -> Record:
        state = super().setup(task, population)
        nobody = torch.zeros(0, dtype=torch.int64)
        return state.replace(
            nodes=_grown(Record(), _ROOT, (state.params, state.buffers)),
            groups=Record(clients=nobody, group=nobody.clone()),
            unit=0.0,
            last=Record(clients=nobody.clone(), cosines=torch.zeros(0, 0)),
        )

    def nodes(self, state: Record, clients: Sequence[int]) -> dict[int, int]:
        """Where in the tree these clients are."""
        known = dict(zip(state.groups.clients.tolist(), state.groups.group.tolist(), strict=True))
        return {client: known.get(client, _ROOT) for client in clients}

    def broadcast(self, state: Record, cohort: Sequence[int]) -> Work:
        work = super().broadcast(state, cohort)
        where = self.nodes(state, cohort)
        models = {
            node: Record(params=state.nodes[str(node)].params, buffers=state.nodes[str(node)].buffers)
            for node in set(where.values())
        }
        if len(models) == 1:
            return replace(work, shared=work.shared.replace(**next(iter(models.values()))))
        return Work(Record(lr=work.shared.lr), {client: models[node] for client, node in where.items()})

    def update(self, state: Record, replies: Replies) -> Record:
        each = dict(zip(replies.clients, replies.each, strict=True))
        where = self.nodes(state, replies.clients)
        norms, cosines = _compared([reply.values["update"] for reply in replies.each])
        if state.round == 0:
            state = state.replace(unit=float(norms.mean()))
        nodes = state.nodes
        for node in sorted(set(where.values())):
            clients = [client for client in replies.clients if where[client] == node]
            own = {client: each[client] for client in clients}
            if "left" in nodes[str(node)]:
                where.update({client: _side(nodes[str(node)], reply) for client, reply in own.items()})
                continue
            at = [replies.clients.index(client) for client in clients]
            right = self._split(state, own, norms[at], cosines[np.ix_(at, at)])
            if right is None:
                nodes = _grown(nodes, node, advanced(*_model(nodes, node), own))
            else:
                left = {client: reply for client, reply in own.items() if client not in right}
                nodes, sides = _divided(nodes, node, left, {client: own[client] for client in right})
                where.update(sides)
        groups = noted(state.groups, where)
        leaves = [int(node) for node in nodes if "left" not in nodes[node]]
        members = [float((groups.group == node).sum()) for node in leaves]
        params, buffers = shares([_model(nodes, node) for node in leaves], members)
        few = len(replies.clients[:COMPARED])
        last = Record(
            clients=torch.tensor(replies.clients[:few]), cosines=torch.from_numpy(cosines[:few, :few].copy())
        )
        return state.replace(
            params=params, buffers=buffers, nodes=nodes, groups=groups, last=last, round=state.round + 1
        )

    def _split(
        self, state: Record, replies: Mapping[int, Reply], norms: NDArray[Any], cosines: NDArray[Any]
    ) -> list[int] | None:
        """The clients that leave for the right side, or None where a cluster stays whole."""
        total = sum(float(reply.weight) for reply in replies.values())
        if state.round + 1 <= self.start or len(replies) < self.least or total <= 0:
            return None
        unit = state.unit if self.unit == "first" else 1.0
        parts = [reply.values["update"].flat() * (reply.weight / total) for reply in replies.values()]
        mean = float(torch.stack(parts).sum(0).norm())
        if not (mean < self.eps1 * unit and norms.max() > self.eps2 * unit):
            return None
        right = bipartition(cosines, self.linkage)
        crossing = cosines[~right][:, right].max()
        if self.gamma is not None and crossing >= ((1 - self.gamma) / 2) ** 0.5:
            return None
        return [client for client, leaves in zip(replies, right.tolist(), strict=True) if leaves]

    def clusters(self, state: Record) -> dict[int, list[int]]:
        """Clients by the place in the tree where they are, those that wait to be placed among them."""
        found: dict[int, list[int]] = {}
        for client, node in zip(state.groups.clients.tolist(), state.groups.group.tolist(), strict=True):
            found.setdefault(node, []).append(client)
        return found

    def affinity(self, state: Record) -> tuple[list[int], Tensor] | None:
        """(clients, cosines [n, n]) of the updates of the last round, each from the model of its own cluster."""
        clients = state.last.clients.tolist()
        return (clients, state.last.cosines) if len(clients) > 1 else None

    # ---- client half -------------------------------------------------------------------------------------

    def personal(self, received: Record, memory: Record) -> Model:
        """The model of the client's cluster."""
        return received.params, received.buffers


def bipartition(similarity: NDArray[Any], linkage: str = "complete") -> NDArray[np.bool_]:
    """Two groups by agglomerative clustering of a similarity [n, n], n >= 2: which ones are not in the first's.

    Groups are as similar as their least similar members ("complete") or their most similar ones ("single"), and the
    most similar two are merged until two are left. "single" minimises the largest similarity between the groups.
    """
    between = np.array(similarity, dtype=np.float64)
    np.fill_diagonal(between, -np.inf)
    label = np.arange(len(between))
    join = np.minimum if linkage == "complete" else np.maximum
    for _ in range(len(between) - 2):
        i, j = sorted(np.unravel_index(between.argmax(), between.shape))
        between[i] = between[:, i] = join(between[i], between[j])
        between[j] = between[:, j] = between[i, i] = -np.inf
        label[label == j] = i
    apart: NDArray[np.bool_] = label != label[0]
    return apart


def _compared(updates: Sequence[Tensors]) -> tuple[NDArray[Any], NDArray[Any]]:
    """(norms [n], cosines [n, n]) of updates; an update of norm 0 has cosine 0 with all."""
    rows = torch.stack([update.flat() for update in updates]).double()
    norms = rows.norm(dim=1)
    unit = rows / norms.clamp(min=1e-300).unsqueeze(1)
    return norms.cpu().numpy(), (unit @ unit.T).cpu().numpy()


def _model(nodes: Record, node: int) -> Model:
    return nodes[str(node)].params, nodes[str(node)].buffers


def _grown(nodes: Record, node: int, model: Model) -> Record:
    """The tree with this model at a leaf, old or new."""
    return nodes.replace(**{str(node): Record(params=model[0], buffers=model[1])})


def _divided(
    nodes: Record, node: int, left: Mapping[int, Reply], right: Mapping[int, Reply]
) -> tuple[Record, dict[int, int]]:
    """The tree with a leaf split, and where its clients are then. The leaf keeps the model they started from."""
    params, buffers = _model(nodes, node)
    first = len(nodes)
    split = nodes[str(node)].replace(left=first, right=first + 1)
    where = {}
    for child, name, replies in ((first, "to_left", left), (first + 1, "to_right", right)):
        nodes = _grown(nodes, child, advanced(params, buffers, replies))
        directions = [
            reply.values["update"] / reply.values["update"].norm().clamp(min=1e-30)
            for reply in replies.values()
        ]
        split = split.replace(**{name: torch.stack([way.flat() for way in directions]).mean(0)})
        where.update(dict.fromkeys(replies, child))
    return nodes.replace(**{str(node): split}), where


def _side(split: Record, reply: Reply) -> int:
    """The child of a split that a client goes to: the one whose mean direction is nearer to that of its update."""
    update = reply.values["update"].flat()
    cosines = [float(update @ way / way.norm().clamp(min=1e-30)) for way in (split.to_left, split.to_right)]
    return int(split.left if cosines[0] >= cosines[1] else split.right)
