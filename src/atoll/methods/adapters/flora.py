"""Factors that are stacked, not averaged, and merged into the base."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from atoll import seeds
from atoll.adapters import pairs
from atoll.contract import Model, Population, Replies, Work
from atoll.methods.adapters.based import Based
from atoll.methods.adapters.factors import mean_product, read, wide
from atoll.methods.parts.buffers import form
from atoll.task import Task
from atoll.tensors import Record, Tensors

__all__ = ["FLoRA"]


@dataclass(frozen=True, kw_only=True)
class FLoRA(Based):
    """Stack the clients' factors and merge them into the base.   Wang et al., NeurIPS 2024 (arXiv 2409.05976)

    client:  A_k drawn anew, B_k = 0, over W_t;  trained as in FedAvg
    server:  A = [A_1; ...; A_K];   B = [p_1 B_1, ..., p_K B_K],  p_k = n_k / n_S
             W_{t+1} = W_t + scale B A = W_t + scale sum_k p_k B_k A_k

    Ranks may differ from client to client (adapter = "lora:4,8 / lora:16,32"). What a round begins with is drawn from
    its number and the run's seed, of which everybody knows the first rows of one A: a reply says how far A_k moved. The
    stack, of rank sum_k r_k, travels to clients as it is, or as the weights, whichever is less.

    Traps: every round starts from nothing, so that an optimiser's warm-up is paid in each; alpha and lr matter more
    than in the other methods. The global model is W_t, in which all is merged.
    """

    mixed: ClassVar[bool] = True
    paper: ClassVar[str] = "Wang et al. 2024 (FLoRA)"
    cost: ClassVar[str] = "1 adapter up; those of all others down"

    # ---- server half -----------------------------------------------------------------------------------------

    def setup(self, task: Task, population: Population) -> Record:
        state = super().setup(task, population)
        own = task.initial()[0]
        merged = {  # nothing, but of factors that were trained before
            each.weight: (wide(state.base[each.weight]) + each.delta(own[each.A], own[each.B])).to(
                state.base[each.weight].dtype
            )
            for each in pairs(task.module)
            if own[each.B].any()
        }
        base = Tensors({**state.base, **merged})
        return state.replace(base=base, seed=population.seed)

    def model(self, state: Record) -> Model:
        rest = state.params.map_names(lambda name, value: value)
        blank = {each.B: torch.zeros_like(rest[each.B]) for each in read(state.factors)}
        return Tensors({**rest, **blank, **state.base}), state.buffers

    def broadcast(self, state: Record, cohort: Sequence[int]) -> Work:
        work = super().broadcast(state.replace(params=Tensors()), cohort)
        key = torch.tensor(seeds.address(state.seed, "flora", state.round))
        several = len(read(state.factors)[0].ranks) > 1
        forms = {client: self._form(state, client) for client in cohort} if several else {}
        return replace(work, shared=work.shared.replace(key=key), forms=forms)

    def expects(self, state: Record) -> Record:
        return self._form(state, 0)

    def _form(self, state: Record, client: int) -> Record:
        """The form of what a client sends."""
        due = dict(state.params)
        for each in read(state.factors):
            rank = each.rank(client)
            due[each.A] = due[each.A].new_empty(rank, due[each.A].shape[1])
            due[each.B] = due[each.B].new_empty(due[each.B].shape[0], rank)
        return Record(update=Tensors(due), **form(state.buffers))

    def update(self, state: Record, replies: Replies) -> Record:
        key = torch.tensor(seeds.address(state.seed, "flora", state.round))
        factors = read(state.factors)
        of = list(zip(self.shares(replies), replies.clients, replies.each, strict=True))
        changes, ranks = [], []
        for at, each in enumerate(factors):
            most = max(reply.values["update"][each.A].shape[0] for _, _, reply in of)
            first = drawn(key, at, most, state.params[each.A], each.embedding)
            changes.append(
                mean_product(
                    (p, each.scale(k), u[each.A] + first[: len(u[each.A])].to(u[each.A]), u[each.B])
                    for p, k, u in ((p, k, reply.values["update"]) for p, k, reply in of)
                )
            )
            ranks.append(sum(each.rank(client) for client in replies.clients))
        return self.moved(state, replies, self.beneath(factors, changes), ranks)

    # ---- client half -----------------------------------------------------------------------------------------

    def start(self, task: Task, params: Tensors, received: Record) -> Tensors:
        own, found = task.initial()[0], {}
        for at, pair in enumerate(pairs(task.module)):
            a, b = own[pair.A], own[pair.B]
            place = received.lr.device
            found[pair.A] = drawn(received.key, at, pair.rank, a, pair.kind == "embedding").to(place)
            found[pair.B] = torch.zeros_like(b, device=place)
        return Tensors({name: found.get(name, value) for name, value in own.items()})


def drawn(key: Tensor, layer: int, rank: int, like: Tensor, embedding: bool) -> Tensor:
    """The first rows of A [rank, in] of a layer in a round, which has this key: uniform in +-1 / sqrt(in).

    Of an embedding, which reads one number of a row and no sum, in +-sqrt(3): of variance 1.
    """
    width = like.shape[1]
    bound = math.sqrt(3) if embedding else 1 / math.sqrt(width)
    return ((seeds.uniform(seeds.fold(key, layer), (rank, width)) * 2 - 1) * bound).to(like.dtype)
