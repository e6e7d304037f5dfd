"""Methods of adapters whose server changes the weights beneath them: the base, as far as there are adapters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from torch import Tensor

from atoll.contract import ClientData, Model, Population, Replies, Work
from atoll.methods.adapters.factors import Factors, read, table, wide
from atoll.methods.adapters.told import heard, lengths, untold
from atoll.methods.fedavg import FedAvg
from atoll.methods.parts.buffers import mean_buffers
from atoll.methods.parts.shared import split
from atoll.task import Batch, Task
from atoll.tensors import Record, Tensors, nbytes

__all__ = ["Based"]


@dataclass(frozen=True, kw_only=True)
class Based(FedAvg):
    """Train adapters over a base that the server changes. The base of such methods.

    The state has the weights beneath adapters, `base`, as they are now. All of them are in what clients are given.
    What travels is less: every client has the base as it was at first, so that it needs what the changes since it was
    last there come to, as weights or as factors of them, whichever are fewer bytes. Nobody sends weights up.
    """

    reduction: ClassVar[Literal["mean", "each"]] = "each"
    broadcasts: ClassVar[tuple[str, ...]] = ()
    low_rank: ClassVar[bool] = True
    exact: ClassVar[bool | None] = True
    in_step: ClassVar[bool] = True
    host: ClassVar[tuple[str, ...]] = ("factors", "told")

    # ---- server half -----------------------------------------------------------------------------------------

    def setup(self, task: Task, population: Population) -> Record:
        state = super().setup(task, population)
        factors = table(self, population.tasks or (task,))
        base = Tensors({each.weight: task.frozen[each.weight] for each in read(factors)})
        return state.replace(base=base, factors=factors, told=untold())

    def model(self, state: Record) -> Model:
        return Tensors({**state.params, **state.base}), state.buffers

    def broadcast(self, state: Record, cohort: Sequence[int]) -> Work:
        work = super().broadcast(state, cohort)
        shared = work.shared.replace(params=Tensors({**work.shared.params, **state.base}))
        whole = nbytes(state.base)
        found = lengths(state.told, cohort, nbytes(shared) - whole, whole, stranger=False)
        return replace(work, shared=shared, lengths=found)

    def moved(self, state: Record, replies: Replies, changes: Tensors, ranks: Sequence[int]) -> Record:
        """The state after these changes of the base, which factors of these ranks come to."""
        base = state.base.map_names(
            lambda name, old: (wide(old) + changes[name]).to(old.dtype) if name in changes else old
        )
        size = sum(
            min(nbytes(old), rank * sum(old.shape) * old.element_size())
            for old, rank in zip(base.values(), ranks, strict=True)
        )
        pairs = list(zip(replies.clients, replies.each, strict=True))
        return state.replace(
            base=base,
            buffers=mean_buffers(state.buffers, pairs),
            told=heard(state.told, replies.clients, size, nbytes(base)),
            round=state.round + 1,
        )

    @staticmethod
    def shares(replies: Replies) -> list[float]:
        """What each reply counts for, together 1."""
        return [float(reply.weight) / replies.weight for reply in replies.each]

    @staticmethod
    def beneath(factors: Sequence[Factors], changes: Sequence[Tensor]) -> Tensors:
        """Changes [out, in] by the name of the weight, in its shape."""
        return Tensors(
            {each.weight: each.laid(change) for each, change in zip(factors, changes, strict=True)}
        )

    # ---- client half -----------------------------------------------------------------------------------------

    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        weights = set(received.params) & set(task.frozen)
        params, base = split(received.params, weights)
        local = super().begin(task, received.replace(params=self.start(task, params, received)), memory, data)
        return local.replace(base=base)

    def start(self, task: Task, params: Tensors, received: Record) -> Tensors:
        """What a client trains, as it is at the start of a round."""
        return params

    def gradient(self, task: Task, local: Record, batch: Batch) -> tuple[Tensors, Record]:
        return super().gradient(task.over(local.base), local, batch)
