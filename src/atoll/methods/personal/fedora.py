"""One model per client: each is drawn towards a mixture of the models of clients with like data, where that helps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from atoll import seeds
from atoll.contract import Change, ClientData, Model, Population, Program, Replies, Reply, Work
from atoll.errors import ConfigError
from atoll.methods.fedavg import FedAvg
from atoll.methods.parts.bank import held, keep, stack, without
from atoll.methods.parts.settings import require
from atoll.methods.personal.relatedness import (
    likeness,
    nearest,
    nowhere,
    placed,
    propagate,
    transition,
    truncated,
)
from atoll.methods.personal.sketches import Sketch, basis
from atoll.parts import Inputs
from atoll.task import Batch, Task
from atoll.tensors import Record, Tensors

__all__ = ["Fedora"]


@dataclass(frozen=True, kw_only=True)
class Fedora(FedAvg):
    """Propagate models between related clients, and follow only where it helps.   Wu et al., KDD 2023

    once:    U_k = top `rank` left singular vectors of [vec(x_i); label_scale onehot(y_i)]_i
             s_ij = exp(temperature * sum of cosines of the principal angles of U_i and U_j), i != j
             S = the top_k s_ij of each row, divided by their sum;   P = (1 - alpha) (I - alpha S)^-1
    client:  d = F_k(w_k; validation) - F_k(v_k; validation)              v_k: what the others propagate to it
             lambda = strength exp(d / 2) if d >= 0 else 0,  at most 1 / lr
             w_k <- w_k - lr (grad F_k(w_k; batch) + lambda (w_k - v_k))
    server:  v_i <- sum_j P_ij w_j,  w_j the last model of client j

    A client predicts with w_k. A new client is placed by its sketch alone, and starts from its neighbours' mean,
    sum_j S_kj w_j; nobody else trains anew. A client without validation samples has d = 0. `offer` gives such a
    mean to someone who only has inputs.

    v_k is a mixture of models of the round before, and while all still learn it is behind w_k: d < 0 also for clients
    that gain by following. What tells them apart is how they would have done alone. gate="beside", not in the paper:

    client:  lambda = strength;  a_k starts where w_k does, and on the same batches a_k <- a_k - lr grad F_k(a_k; batch)
             it predicts with a_k if F_k(a_k; validation) < F_k(w_k; validation) after the round, else with w_k

    The w_k, which are what is sent, are then those of gate="always" to the bit, and the a_k of those who are there
    from the first round on those of local training. Without validation samples a client predicts with w_k.

    Args:
        gate: "validation" as above, "always" (lambda = strength), "soft" (lambda = strength
            sigmoid(d / softness)), or "beside" (twice the training, two models remembered).
        prox: "explicit" as above, or "implicit": w_k <- (w_k + lr lambda v_k) / (1 + lr lambda) after the step.
        strength: factor of lambda.
        softness: of gate="soft", in units of the loss.
        alpha: how far models travel, 0 (not at all) to below 1.
        top_k: neighbours of a client.
        temperature: how much nearer ones count for more.
        rank: columns of a sketch.
        label_scale: weight of the labels in a sketch.
        sketch_dim: project samples to so many coordinates first, by one random matrix for all; 0 keeps them.
        sketch_noise: standard deviation of Gaussian noise in the second moment that a sketch is taken from,
            each sample scaled to norm at most 1. The release of a client with n samples is then
            (epsilon, delta)-private with epsilon = sqrt(2 ln(1.25 / delta)) sqrt(2) / (n sketch_noise), for
            epsilon < 1 (Dwork et al. 2014). Needs a small `sketch_dim` to leave a signal.

    Traps: without noise a sketch of rank 1 is nearly the mean sample of the client. The pull is no part of
    the gradient that momentum sums up. Clients that sit out a round keep propagating their last own model.
    """

    gate: Literal["validation", "always", "soft", "beside"] = "validation"
    prox: Literal["explicit", "implicit"] = "explicit"
    strength: float = 1.0
    softness: float = 0.1
    alpha: float = 0.8
    top_k: int = 2
    temperature: float = 10.0
    rank: int = 1
    label_scale: float = 1.0
    sketch_dim: int = 0
    sketch_noise: float = 0.0

    reduction: ClassVar[Literal["mean", "each"]] = "each"
    change: ClassVar[Change | None] = Change("params", since="params", where="memory")
    relation: ClassVar[str] = "likeness of sketches"
    host: ClassVar[tuple[str, ...]] = ("near",)
    broadcasts: ClassVar[tuple[str, ...]] = ()
    paper: ClassVar[str] = "Wu et al. 2023 (KDD)"
    cost: ClassVar[str] = (
        "1 model up, 1 down; once a sketch up; 2 validation passes; 1 remembered; beside: 2, twice the training"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self,
            "gate",
            self.gate in ("validation", "always", "soft", "beside"),
            "must be validation, always, soft or beside",
        )
        require(self, "prox", self.prox in ("explicit", "implicit"), "must be explicit or implicit")
        require(self, "strength", self.strength >= 0, "must not be negative")
        require(self, "softness", self.softness > 0, "must be above 0")
        require(self, "alpha", 0 <= self.alpha < 1, "must be in [0, 1)")
        for name in ("top_k", "rank"):
            require(self, name, getattr(self, name) >= 1, "must be at least 1")
        require(self, "sketch_dim", self.sketch_dim >= 0, "must not be negative (0 keeps all coordinates)")
        require(self, "sketch_noise", self.sketch_noise >= 0, "must not be negative")
        require(self, "sketch_noise", not self.sketch_noise or self.sketch_dim > 0, "needs sketch_dim")

    @property
    def reads(self) -> tuple[str, ...]:
        return () if self.gate == "always" else ("validation",)

    def programs(self) -> Mapping[str, Program]:
        return {"sketch": self.sketch}

    @property
    def sketch(self) -> Sketch:
        """The program that makes a client's sketch."""
        return Sketch(self.rank, self.label_scale, self.sketch_dim, self.sketch_noise)

    # ---- server half -------------------------------------------------------------------------------------

    def setup(self, task: Task, population: Population) -> Record:
        near = nowhere(self.rank, self.top_k)
        return super().setup(task, population).replace(near=near, models=Record(), seed=population.seed)

    def enrol(self, state: Record, cohort: Sequence[int]) -> tuple[Sequence[int], Work] | None:
        known = set(state.near.ids.tolist())
        new = [client for client in cohort if client not in known]
        if not new:
            return None
        return new, Work(Record(projection=self._projection(state)), program="sketch")

    def _projection(self, state: Record) -> Tensor:
        """The address of the matrix that all sketches are projected by."""
        return torch.tensor(seeds.address(state.seed, "sketch"))

    def welcome(self, state: Record, replies: Replies) -> Record:
        """Place new clients by their sketches."""
        sketches = torch.stack([reply.values.sketch for reply in replies.each]).cpu()
        return state.replace(near=placed(state.near, replies.clients, sketches, self.top_k))

    def leave(self, state: Record, clients: Sequence[int]) -> Record:
        gone, near = set(clients), state.near
        stays = torch.tensor([int(k) not in gone for k in near.ids], dtype=torch.bool)
        rest = placed(
            nowhere(self.rank, self.top_k), near.ids[stays].tolist(), near.sketches[stays], self.top_k
        )
        return state.replace(near=rest, models=without(state.models, clients))

    def broadcast(self, state: Record, cohort: Sequence[int]) -> Work:
        work = super().broadcast(state, cohort)
        models = self._propagated(state, cohort)
        own = {k: Record(params=params, buffers=buffers) for k, (params, buffers) in models.items()}
        return Work(Record(lr=work.shared.lr), own)

    def update(self, state: Record, replies: Replies) -> Record:
        new = {
            client: Tensors({**reply.values.params, **reply.values.buffers})
            for client, reply in zip(replies.clients, replies.each, strict=True)
        }
        return state.replace(models=keep(state.models, new), round=state.round + 1)

    def expects(self, state: Record) -> Record:
        return Record(params=state.params, buffers=state.buffers)

    def model(self, state: Record) -> Model:
        """The mean of the clients' models, for reference; nobody predicts with it."""
        clients = held(state.models)
        if not clients:
            return state.params, state.buffers
        both = stack(state.models, clients)
        mean = {name: _mean(value) for name, value in both.items()}
        return _split(mean, state)

    def affinity(self, state: Record) -> tuple[list[int], Tensor] | None:
        """(clients, likeness [n, n] scaled to [0, 1]): the cosines of the principal angles between sketches."""
        order = state.near.ids.argsort()[:64]
        if len(order) < 2:
            return None
        sketches = state.near.sketches[order]
        return state.near.ids[order].tolist(), likeness(sketches, sketches) / self.rank

    def offer(self, state: Record, inputs: Inputs) -> Model:
        """A model for someone without labels, from their inputs [n, ...] alone: neighbours by the sample part of
        the sketches, weighted as usual. Raises ConfigError before any client has trained."""
        if not held(state.models):
            raise ConfigError("no client has trained yet", hint="play some rounds first")
        rows = self.sketch.rows(inputs, self._projection(state))
        known = truncated(state.near.sketches, rows.shape[1])
        return self._mixture(state, likeness(basis(rows, self.rank).cpu().unsqueeze(0), known)[0])

    def _mixture(self, state: Record, values: Tensor) -> Model:
        """The models of the clients most like someone outside, mixed; `values` [n] by position."""
        ids = state.near.ids.tolist()
        known = held(state.models, ids)
        position = {client: at for at, client in enumerate(ids)}
        there = torch.tensor([position[client] for client in known])
        scores, whose = nearest(values[there].unsqueeze(0), there.unsqueeze(0), self.top_k)
        weights = transition(scores, self.temperature)[0]
        both = stack(state.models, [ids[int(at)] for at in whose[0]])
        return _split({name: _weighted(value, weights) for name, value in both.items()}, state)

    def _propagated(self, state: Record, cohort: Sequence[int]) -> dict[int, Model]:
        """v_k for each of the cohort: its row of P over the clients that have a model. For one that has none yet, the
        models of those of its neighbours that have, by likeness; where there are none, the mean of all."""
        initial = state.params, state.buffers
        ids = state.near.ids.tolist()
        position = {client: at for at, client in enumerate(ids)}
        trained = held(state.models, ids)
        if not trained:
            return dict.fromkeys(cohort, initial)
        has = torch.zeros(len(ids), dtype=torch.bool)
        has[[position[client] for client in trained]] = True
        scores = torch.where(has[state.near.neighbours], state.near.scores, -torch.inf)
        weights = transition(scores, self.temperature)
        there = has.nonzero().flatten()
        compact = torch.zeros(len(ids), dtype=torch.int64)
        compact[there] = torch.arange(len(there))
        neighbours = compact[state.near.neighbours]
        every = stack(state.models, [ids[int(at)] for at in there])
        floats = Tensors({name: v for name, v in every.items() if v.is_floating_point()})
        counters = {name: v.amax(0) for name, v in every.items() if name not in floats}
        asked = [k for k in cohort if k in position and bool(has[position[k]])]
        wanted = compact[[position[k] for k in asked]]
        moved = propagate(weights[there], neighbours[there], self.alpha, floats, wanted)
        row = {client: at for at, client in enumerate(asked)}
        result: dict[int, Model] = {}
        for client in cohort:
            at = position.get(client)
            if client in row:
                found = {name: v[row[client]] for name, v in moved.items()}
            elif at is not None and float(weights[at].sum()) > 0:
                own, whose = weights[at], neighbours[at]
                found = {name: _weighted(v[whose], own) for name, v in floats.items()}
            else:
                found = {name: v.mean(0) for name, v in floats.items()}
            result[client] = _split({**found, **counters}, state)
        return result

    # ---- client half -------------------------------------------------------------------------------------

    def remember(self, task: Task, received: Record) -> Record:
        own = Record(params=received.params, buffers=received.buffers)
        if self.gate == "beside":
            return own.replace(alone=own, follows=torch.ones_like(received.lr))
        return own

    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        own = received.replace(params=memory.params, buffers=memory.buffers)
        local = super().begin(task, own, Record(), data)
        pull = self._pull(task, received, memory, data)
        local = local.replace(anchor=received.params, pull=torch.minimum(pull, 1 / received.lr))
        if self.gate == "beside":
            alone = super().begin(task, received.replace(**memory.alone), Record(), data)
            return local.replace(alone=alone.replace(received=Record()))
        return local

    def _pull(self, task: Task, received: Record, memory: Record, data: ClientData) -> Tensor:
        """lambda."""
        strength = torch.zeros_like(received.lr) + self.strength
        if self.gate in ("always", "beside") or data.validation is None:
            return strength
        gain = _loss(task, memory, data.validation) - _loss(task, received, data.validation)
        if self.gate == "soft":
            return strength * torch.sigmoid(gain / self.softness)
        return strength * torch.where(gain < 0, torch.zeros_like(gain), torch.exp(gain.clamp(max=40) / 2))

    def step(self, task: Task, local: Record, batch: Batch) -> Record:
        new = super().step(task, local, batch)
        if self.gate == "beside":
            new = new.replace(alone=super().step(task, local.alone, batch))
        rate = local.lr * local.pull
        if self.prox == "explicit":
            return new.replace(params=new.params - (local.params - local.anchor) * rate)
        return new.replace(params=(new.params + local.anchor * rate) / (1 + rate))

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        reply, _ = super().finish(task, local, data)
        own = Record(params=local.params, buffers=local.buffers)
        reply = reply._replace(values=own)
        if self.gate != "beside":
            return reply, own
        alone = Record(params=local.alone.params, buffers=local.alone.buffers)
        follows = torch.ones_like(local.lr)
        if data.validation is not None:
            hurt = _loss(task, own, data.validation) > _loss(task, alone, data.validation)
            follows = torch.where(hurt, torch.zeros_like(follows), follows)
        return reply, own.replace(alone=alone, follows=follows)

    def personal(self, received: Record, memory: Record) -> Model:
        if self.gate != "beside":
            return memory.params, memory.buffers
        parts = ((memory.params, memory.alone.params), (memory.buffers, memory.alone.buffers))
        params, buffers = (_either(memory.follows > 0.5, pulled, alone) for pulled, alone in parts)
        return params, buffers


def _loss(task: Task, model: Record, batch: Batch) -> Tensor:
    """The mean loss of a model over the real samples; 0 where there are none."""
    totals = task.totals(model.params, model.buffers, batch)
    return totals.loss / totals.count.clamp(min=1)  # type: ignore[no-any-return]


def _either(first: Tensor, one: Tensors, other: Tensors) -> Tensors:
    """One where `first` holds, else the other."""
    return Tensors({name: torch.where(first, value, other[name]) for name, value in one.items()})


def _mean(values: Tensor) -> Tensor:
    return values.mean(0) if values.is_floating_point() else values.amax(0)


def _weighted(values: Tensor, weights: Tensor) -> Tensor:
    if not values.is_floating_point():
        return values.amax(0)
    mixed: Tensor = torch.tensordot(weights.to(values), values, dims=1)
    return mixed


def _split(tensors: Mapping[str, Tensor], state: Record) -> Model:
    """Parameters and buffers from one collection of both."""
    return Tensors({n: tensors[n] for n in state.params}), Tensors({n: tensors[n] for n in state.buffers})
