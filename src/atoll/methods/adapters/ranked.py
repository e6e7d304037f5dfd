"""Methods of adapters whose server has factors of the largest rank, of which a client gets as many rows as it can."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple

from torch import Tensor

from atoll.contract import Population, Replies, Reply, Work
from atoll.methods.adapters.factors import Factors, read, table, wide
from atoll.methods.fedavg import FedAvg
from atoll.methods.parts.buffers import form, mean_buffers
from atoll.task import Task
from atoll.tensors import Record, Tensors

__all__ = ["Ranked", "Sent"]


class Sent(NamedTuple):
    """A client's factors of one weight as it leaves them, their scale taken into B."""

    client: int
    share: float
    A: Tensor
    B: Tensor


@dataclass(frozen=True, kw_only=True)
class Ranked(FedAvg):
    """Give each client the first rows of A, and columns of B, that its rank has. The base of such methods.

    The state has factors of the largest rank, `whole`, with what products are scaled by taken into B; `params`, the
    global model's, are what a client of the first architecture is given.
    """

    reduction: ClassVar[Literal["mean", "each"]] = "each"
    broadcasts: ClassVar[tuple[str, ...]] = ()
    low_rank: ClassVar[bool] = True
    mixed: ClassVar[bool] = True
    in_step: ClassVar[bool] = True
    host: ClassVar[tuple[str, ...]] = ("factors",)

    # ---- server half -----------------------------------------------------------------------------------------

    def setup(self, task: Task, population: Population) -> Record:
        tasks = population.tasks or (task,)
        state = super().setup(task, population)
        known = table(self, tasks)
        whole: dict[str, Tensor] = {}
        for each in read(known):
            most = each.ranks.index(max(each.ranks))
            start = tasks[most].initial()[0]
            whole |= {each.A: start[each.A], each.B: start[each.B] * each.scales[most]}
        return state.replace(whole=Tensors(whole), factors=known)

    def rank(self, state: Record, factors: Factors, client: int) -> int:
        """The rank of what a client trains."""
        return factors.rank(client)

    def given(self, state: Record, client: int) -> Tensors:
        """What a client is given to train, in the order in which it has it."""
        factors = read(state.factors)
        return self._first(state, factors, client, [self.rank(state, each, client) for each in factors])

    def _first(self, state: Record, factors: Sequence[Factors], client: int, ranks: Sequence[int]) -> Tensors:
        """The first rows and columns, as a client has them."""
        found = dict(state.params)
        for each, rank in zip(factors, ranks, strict=True):
            found[each.A] = state.whole[each.A][:rank]
            found[each.B] = state.whole[each.B][:, :rank] / each.scale(client)
        return Tensors(found)

    def broadcast(self, state: Record, cohort: Sequence[int]) -> Work:
        work = super().broadcast(state, cohort)
        own = {client: Record(params=self.given(state, client)) for client in cohort}
        forms = {k: Record(update=each.params, **form(state.buffers)) for k, each in own.items()}
        shared = Record({name: part for name, part in work.shared.items() if name != "params"})
        return replace(work, shared=shared, own=own, forms=forms)

    def update(self, state: Record, replies: Replies) -> Record:
        factors = read(state.factors)
        pairs = list(zip(replies.clients, replies.each, strict=True))
        left = {k: _left(self.given(state, k), reply) for k, reply in pairs}
        sent = {
            each.weight: [
                Sent(k, float(r.weight) / replies.weight, left[k][each.A], left[k][each.B] * each.scale(k))
                for k, r in pairs
            ]
            for each in factors
        }
        state = self.combined(state, factors, sent)
        state = state.replace(buffers=mean_buffers(state.buffers, pairs), round=state.round + 1)
        # The global model has the form of the first architecture, whatever became of its clients' ranks.
        return state.replace(params=self._first(state, factors, 0, [each.rank(0) for each in factors]))

    @abstractmethod
    def combined(self, state: Record, factors: Sequence[Factors], sent: Mapping[str, list[Sent]]) -> Record:
        """The state with another `whole`, made of what clients have left, by the name of the weight."""


def _left(given: Tensors, reply: Reply) -> Tensors:
    """The factors as a client leaves them."""
    moved = reply.values["update"]
    return given.map_names(lambda name, value: wide(value) + wide(moved[name]))
