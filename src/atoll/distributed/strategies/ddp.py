"""Synchronous data parallel training by torch's DistributedDataParallel."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from atoll.distributed.learner import Context, Learner, Replica
from atoll.distributed.strategy import Strategy

__all__ = ["DDP"]


@dataclass(frozen=True)
class DDP(Strategy):
    """Every worker has the model, and gradients are averaged while the backward pass goes on.   Li et al., VLDB 2020

    w <- w - lr (1 / n) sum_i sum_{x of worker i} grad l(w; x),  n all samples of the step
    """

    name: ClassVar[str] = "ddp"
    says: ClassVar[str] = "every worker has the model; gradients are summed during the backward pass"

    def learner(self, context: Context) -> Learner:
        return _Learner(context)


class _Learner(Replica):
    waits = False

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        devices = [context.device.index] if context.device.type == "cuda" else None
        self.forward = DistributedDataParallel(
            self.module, device_ids=devices, process_group=context.beside.group
        )

    def pull(self, loss: Tensor) -> None:
        (loss * self.context.beside.size).backward()  # type: ignore[no-untyped-call]  # it divides by the workers

    def quiet(self) -> AbstractContextManager[Any]:
        found: AbstractContextManager[Any] = self.forward.no_sync()
        return found

    def exchange(self, number: int) -> None:
        size = self.context.beside.size
        self.context.links.nbytes += 2 * (size - 1) / size * self.size * self.grads.element_size()
