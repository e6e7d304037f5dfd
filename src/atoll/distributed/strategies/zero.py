"""Data parallel training in which every worker keeps the optimiser's state of its own part of the model only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from atoll.distributed.learner import Context, Learner, Replica
from atoll.distributed.strategy import Strategy

__all__ = ["Zero1"]


@dataclass(frozen=True)
class Zero1(Strategy):
    """The optimiser's state in parts (ZeRO stage 1).   Rajbhandari et al., SC 2020

    Worker i gets the sum of part i of the gradient, steps part i of the parameters, and everybody gathers the parts.
    As many bytes as `DDP`, and of Adam's two moments a worker keeps 1 / W.
    """

    name: ClassVar[str] = "zero1"
    says: ClassVar[str] = "as ddp; each worker keeps its part of the optimiser's state"

    def learner(self, context: Context) -> Learner:
        return _Learner(context)


class _Learner(Replica):
    def held(self, whole: Tensor) -> Tensor:
        size = len(whole) // self.context.beside.size
        return whole[self.context.beside.rank * size : (self.context.beside.rank + 1) * size]

    def exchange(self, number: int) -> None:
        self.held(self.grads).copy_(self.context.beside.scattered(self.grads))

    def squares(self) -> Tensor:
        return self.context.beside.sum(super().squares())

    def advance(self, lr: float) -> None:
        super().advance(lr)
        self.context.beside.gathered(self.held(self.params).clone(), self.params)

    def filled(self, part: Tensor) -> Tensor:
        return self.context.beside.gathered(part)
