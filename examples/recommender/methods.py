"""How users learn together: items shared and tastes at home, and FEDORA among users."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import atoll
from atoll.contract import ClientData, Model, Population, Reply

TASTE = ("taste.weight", "taste.bias")
"""What never leaves a user, of `atoll.models.Factors`."""


@dataclass(frozen=True, kw_only=True)
class SharedItems(atoll.FedRep, atoll.FedAdam):
    """FedRep with FedAdam's server: fit the taste to the items, then send which way the items should move.

    An item moves at few users and is averaged over all, so that a mean alone hardly moves it; Adam gives each number a
    step of its own size. With one epoch for the items this is federated collaborative filtering (Ammad-ud-din et al.
    2019) with tastes that are fitted by gradients.
    """

    def setup(self, task: atoll.Task, population: Population) -> atoll.Record:
        state = super().setup(task, population)
        return state.replace(server=self.server_solver().init(state.params))  # of what is shared alone


@dataclass(frozen=True, kw_only=True)
class RelatedItems(atoll.Fedora):
    """FEDORA with tastes at home: a user has items of their own, drawn to those of users with a like history.

    Users are alike where their histories are (`label_scale=0`; of one sample, a sketch is that history, scaled). The
    server has every user's items one by one, for it mixes them: no sum would do.
    """

    label_scale: float = 0.0
    top_k: int = 10

    def setup(self, task: atoll.Task, population: Population) -> atoll.Record:
        state = super().setup(task, population)
        return state.replace(params=_items(state.params), first=_taste(state.params))

    def model(self, state: atoll.Record) -> Model:
        params, buffers = super().model(state)
        return atoll.Tensors({**params, **state.first}), buffers

    def remember(self, task: atoll.Task, received: atoll.Record) -> atoll.Record:
        own = _taste(task.initial()[0]).map(lambda value: value.to(received.lr.device))
        return super().remember(task, received.replace(params=atoll.Tensors({**received.params, **own})))

    def begin(
        self, task: atoll.Task, received: atoll.Record, memory: atoll.Record, data: ClientData
    ) -> atoll.Record:
        whole = atoll.Tensors({**received.params, **_taste(memory.params)})
        return super().begin(task, received.replace(params=whole), memory, data)

    def finish(self, task: atoll.Task, local: atoll.Record, data: ClientData) -> tuple[Reply, atoll.Record]:
        reply, memory = super().finish(task, local, data)
        return reply._replace(values=reply.values.replace(params=_items(reply.values.params))), memory


def _taste(params: atoll.Tensors) -> atoll.Tensors:
    return _named(params, [name for name in params if name in TASTE])


def _items(params: atoll.Tensors) -> atoll.Tensors:
    return _named(params, [name for name in params if name not in TASTE])


def _named(params: atoll.Tensors, names: Sequence[str]) -> atoll.Tensors:
    return atoll.Tensors({name: params[name] for name in names})
