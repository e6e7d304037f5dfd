"""What methods share whose clients keep models of their own and learn of each other's through the server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from atoll.contract import Change, ClientData, Mean, Model, Population, Replies, Reply
from atoll.methods.local import Local
from atoll.methods.parts.bank import held, keep, stack, without
from atoll.methods.parts.buffers import RULES, averaged, form
from atoll.task import Task
from atoll.tensors import Record, Tensors

__all__ = ["COMPARED", "Peers", "advanced", "noted", "shares"]

COMPARED = 64
"""Clients in an affinity matrix, at most."""


@dataclass(frozen=True, kw_only=True)
class Peers(Local):
    """Every client trains a model of its own and shows it to the server, which keeps the last one of each.

    client:  w_k <- w_k - lr grad F_k(w_k; batch), from where it stopped; sends w_k, remembers it
    server:  the bank, w_k of every client that has taken part

    The global model is the mean of the bank, for reference; nobody predicts with it.
    """

    reduction: ClassVar[Literal["mean", "each"]] = "each"
    change: ClassVar[Change | None] = Change("params", since="params", where="memory")
    broadcasts: ClassVar[tuple[str, ...]] = ()
    mixed: ClassVar[bool] = False

    # ---- server half -------------------------------------------------------------------------------------

    def setup(self, task: Task, population: Population) -> Record:
        return super().setup(task, population).replace(models=Record())

    def update(self, state: Record, replies: Replies) -> Record:
        new = {
            client: Tensors({**reply.values.params, **reply.values.buffers})
            for client, reply in zip(replies.clients, replies.each, strict=True)
        }
        return super().update(state, replies).replace(models=keep(state.models, new))

    def leave(self, state: Record, clients: Sequence[int]) -> Record:
        return state.replace(models=without(state.models, clients))

    def expects(self, state: Record) -> Record:
        return Record(params=state.params, buffers=state.buffers)

    def model(self, state: Record) -> Model:
        clients = held(state.models)
        if not clients:
            return state.params, state.buffers
        both = stack(state.models, clients).map(lambda v: v.mean(0) if v.is_floating_point() else v.amax(0))
        return Tensors({n: both[n] for n in state.params}), Tensors({n: both[n] for n in state.buffers})

    def shown(self, state: Record, client: int) -> Model:
        """The model that the client showed last; the task's initial one if it has not shown any."""
        both = state.models.get(str(client))
        if both is None:
            return state.params, state.buffers
        return Tensors({n: both[n] for n in state.params}), Tensors({n: both[n] for n in state.buffers})

    def rows(self, state: Record, clients: Sequence[int]) -> Tensor:
        """The parameters that clients showed last as rows [n, d], in double precision."""
        flat = [self.shown(state, client)[0].flat().double() for client in clients]
        return torch.stack(flat) if flat else state.params.flat().double().new_zeros(0, state.params.size())

    # ---- client half -------------------------------------------------------------------------------------

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        reply, own = super().finish(task, local, data)
        return reply._replace(values=own), own


# --- groups of clients ----------------------------------------------------------------------------------------------


def advanced(params: Tensors, buffers: Tensors, replies: Mapping[int, Reply]) -> Model:
    """A model after the weighted mean of the updates in these replies; as it was if they weigh nothing."""
    reducer = Mean(RULES)
    for client, reply in replies.items():
        values = reply.values
        few = Record(update=values["update"], buffers=values.buffers, counters=values.counters)
        reducer.add(client, reply._replace(values=few))
    reduced = reducer.result()
    if reduced is None:
        return params, buffers
    return params + reduced.mean["update"], averaged(buffers, reduced.mean)


def noted(groups: Record, new: Mapping[int, int]) -> Record:
    """Clients by group, {clients [n], group [n]} in ascending order of clients, with these changes."""
    known = dict(zip(groups.clients.tolist(), groups.group.tolist(), strict=True))
    merged = sorted({**known, **new}.items())
    both = torch.tensor(merged, dtype=torch.int64).reshape(-1, 2)
    return Record(clients=both[:, 0].contiguous(), group=both[:, 1].contiguous())


def shares(models: Sequence[Model], weights: Sequence[float]) -> Model:
    """The mean of models by weight, counters by their maximum; the one of weight 1 itself where there is one."""
    total = sum(weights)
    reducer = Mean(RULES)
    for at, ((params, buffers), weight) in enumerate(zip(models, weights, strict=True)):
        if weight == total:
            return params, buffers
        values = Record(params=params, **form(buffers))
        reducer.add(at, Reply(values, torch.tensor(weight), Record()))
    reduced = reducer.result()
    assert reduced is not None
    mean = reduced.mean
    both = {**mean.buffers, **mean.counters}
    return mean.params, models[0][1].map_names(lambda name, value: both[name].to(value.dtype))
