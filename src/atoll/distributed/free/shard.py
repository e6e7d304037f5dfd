"""A server's part of the parameters, and what becomes of the gradients that reach it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from atoll.optimizers import Optimizer
from atoll.tensors import Record, Tensors

__all__ = ["STALE", "Shard", "cut"]

STALE = 33  # counts of the staleness 0, 1, ... 31, and of all above


def cut(size: int, servers: int) -> list[slice]:
    """The parts of a vector [n] that so many servers have."""
    ends = [size * at // servers for at in range(servers + 1)]
    return [slice(*ends[at : at + 2]) for at in range(servers)]


class Shard:
    """Parameters [n] with the optimiser's state, stepped in place.

    Each update makes a new version; `seen` is the one that a worker computed on, and its gradient's staleness tau the
    number of updates since.

    Args:
        rule: "sum" applies gradients as they are, those of one step as one; "rates" divides the step size by 1 + tau
            (Zhang et al., IJCAI 2016, "Staleness-aware async-SGD", whose tau counts from 1); "delay" adds
            lambda g g (w - w_seen), a step of the Taylor series towards the gradient at the newest parameters
            (Zheng et al., ICML 2017, DC-ASGD).
        compensation: lambda.
    """

    def __init__(
        self, params: Tensor, state: Record, optimizer: Optimizer, rule: str, compensation: float = 0.0
    ) -> None:
        self.params, self.state, self.optimizer = params, state, optimizer
        self.rule, self.compensation = rule, compensation
        self.version = 0
        self.stale = torch.zeros(STALE, dtype=torch.int64)
        self.delay = 0  # all staleness together
        self._given: dict[int, tuple[int, Tensor]] = {}

    def give(self, worker: int, room: Tensor) -> None:
        """A worker gets the parameters as they are, in a room [n] that nobody writes until it has given a gradient."""
        self._given[worker] = self.version, room.copy_(self.params)

    def forget(self, worker: int) -> None:
        """It will give no gradient for what it got."""
        self._given.pop(worker, None)

    def apply(
        self, workers: Sequence[int], gradients: Sequence[Tensor], lr: float, scale: float = 1.0
    ) -> None:
        """One update by the sum of these gradients [n], which are written over, times `scale`."""
        total = gradients[0]
        for other in gradients[1:]:
            total.add_(other)
        if scale != 1.0:
            total.mul_(scale)
        for worker in workers:
            tau = self.version - self._given[worker][0]
            self.stale[min(tau, STALE - 1)] += 1
            self.delay += tau
        if self.rule == "rates":
            lr /= 1 + self.version - self._given[workers[0]][0]
        elif self.rule == "delay":
            seen = self._given[workers[0]][1]
            moved = torch.sub(self.params, seen, out=seen)  # what it saw is not needed any more
            total.add_(moved.mul_(total).mul_(total), alpha=self.compensation)
        new, self.state = self.optimizer.at_once(
            Tensors(all=total), self.state, Tensors(all=self.params), lr, own=True
        )
        if new["all"].data_ptr() != self.params.data_ptr():
            self.params.copy_(new["all"])
        self.version += 1
