"""Synchronous data parallel training with the ring written out: the readable twin of what libraries do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from atoll.distributed.learner import Context, Learner, Replica
from atoll.distributed.links import Links
from atoll.distributed.strategy import Strategy

__all__ = ["Ring", "ring_sum"]


def ring_sum(value: Tensor, links: Links) -> Tensor:
    """The sum over W workers, in place, each of whom sends 2 (W - 1) / W of it.   Patarasuk and Yuan, JPDC 2009

    `value` is [n], n a multiple of W. It is cut into W parts. In W - 1 steps each part goes once round the ring and
    everybody adds what they have (reduce-scatter): worker i then has the sum of part i + 1. In W - 1 more the sums go
    round (all-gather).
    """
    count, rank = links.size, links.rank
    cut = value.view(count, -1)
    room = cut[0].clone()
    for step in range(count - 1):
        coming = (rank - step - 1) % count
        cut[coming] += links.swap(cut[(rank - step) % count], room)
    for step in range(count - 1):
        cut[(rank - step) % count] = links.swap(cut[(rank + 1 - step) % count], room)
    return value


@dataclass(frozen=True)
class Ring(Strategy):
    """As `DDP`, with gradients summed after the backward pass by a ring of sends between neighbours (`ring_sum`)."""

    name: ClassVar[str] = "ring"
    says: ClassVar[str] = "as ddp, with the ring of sends and sums written out"

    def learner(self, context: Context) -> Learner:
        return _Learner(context)


class _Learner(Replica):
    def exchange(self, number: int) -> None:
        ring_sum(self.grads, self.context.beside)
