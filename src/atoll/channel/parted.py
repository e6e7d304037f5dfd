"""The mean of each part's tensors over the clients that have it, where samples of several parts may lack some."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from atoll.contract import Around, Change, ClientData, Outer, Program, Replies, Reply, Through
from atoll.modalities import present
from atoll.task import Batch, Task
from atoll.tensors import Record, Tensors

__all__ = ["Parted"]

_FIELD = "parts"
"""Of a reply, [2, parts]: the share of the client's samples that have each part, and whether any has."""

_WHOLE = "buffers"
"""The field whose tensors move as far as they do, however few of the samples move them: running statistics."""

Owners = tuple[tuple[str, int], ...]
"""Tensors that are for one part alone, and for which, by position."""


@dataclass(frozen=True)
class Parted(Outer):
    """Around what happens to updates on their way: a mean for each part over those who have it.

    client:  s_k = share of its samples that have part m;  the change of a tensor of m is 0 where s_k is
    server:  mean_k d_k of a tensor of m  <-  (sum_k n_k d_k) / (sum_k n_k s_k);  what nobody has stays;
             of a buffer of m  <-  (sum_k n_k d_k) / (sum_k n_k [s_k > 0])

    A gradient is a mean over all samples of a batch, so that the change of an encoder whose part half of the samples
    lack is about half as long: what is divided by is the share, and not whether there is any. Of buffers it is that:
    a running mean is one of whatever batches there were, and twice its change would be beyond all of them. Both are a
    field of the reply like any other, averaged with it, so that no more than their mean is needed (secure aggregation).

    Args:
        owners: tensors of parts.
    """

    owners: Owners = ()

    def program(self, name: str, inner: Program, change: Change | None) -> Around:
        if name == "train":
            inner = Sharing(inner, self.owners)
        return self.channel.program(name, inner, change)

    def learn(self, state: Record, replies: Replies) -> tuple[Record, Replies]:
        state, replies = self.channel.learn(state, replies)
        mean = Record({name: part for name, part in replies.mean.items() if name != _FIELD})
        shares: Tensor = replies.mean[_FIELD]
        by = torch.where(shares > 0, 1 / shares.clamp(min=torch.finfo(shares.dtype).tiny), 0.0)
        return state, replace(replies, mean=_scaled(mean, self.owners, by))


@dataclass(frozen=True)
class Sharing(Through):
    """Runs a program that trains; its reply says which parts the client's samples have."""

    inner: Program
    owners: Owners

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.inner.reads, "train")))

    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        assert data.train is not None
        here, mask = present(data.train.inputs), data.train.mask
        shares = (here * mask.unsqueeze(1)).sum(0) / mask.sum().clamp(min=1)
        return Record(inner=self.inner.begin(task, received, memory, data), shares=shares)

    def step(self, task: Task, local: Record, batch: Batch) -> Record:
        return local.replace(inner=self.inner.step(task, local.inner, batch))

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        reply, memory = self.inner.finish(task, local.inner, data)
        some = (local.shares > 0).to(local.shares.dtype)
        values = _scaled(reply.values, self.owners, torch.stack([some, some]))
        return reply._replace(values=values.replace(**{_FIELD: torch.stack([local.shares, some])})), memory


def _scaled(values: Record, owners: Owners, by: Tensor) -> Record:
    """The values of a reply, the tensors of each part times its factor, [2, parts], the second row for buffers."""
    of = dict(owners)

    def part(value: object, by: Tensor) -> object:
        if not isinstance(value, Tensors):
            return value
        return Tensors(
            {
                n: v * by[of[n]].to(v.dtype) if n in of and v.is_floating_point() else v
                for n, v in value.items()
            }
        )

    return Record({name: part(value, by[int(name == _WHOLE)]) for name, value in values.items()})
