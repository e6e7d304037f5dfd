"""Synchronous data parallel training whose gradients travel in fewer bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from atoll import compress, spec
from atoll.distributed.learner import Context, Learner, Replica
from atoll.distributed.packed import packed_sum
from atoll.distributed.strategy import Strategy
from atoll.tensors import Record

__all__ = ["Compressed"]


@dataclass(frozen=True)
class Compressed(Strategy):
    """As `DDP`, with what a codec makes of each worker's gradient.   Seide et al. 2014; Karimireddy et al., ICML 2019

    worker i:  u = g_i + e_i;  sends c(u);  e_i <- u - c(u)
    all:       w <- w - lr sum_i c(u_i)

    The error e stays with the worker and is made up for later, where the codec contracts; else nothing is kept.

    Args:
        codec: "int8", "topk:0.01", "powersgd:2" ... (see `atoll.compress`).
    """

    codec: str = "int8"

    name: ClassVar[str] = "compressed"
    says: ClassVar[str] = "as ddp, with gradients that a codec makes smaller, and error feedback"
    takes: ClassVar[tuple[spec.Parameter, ...]] = (spec.rest("codec"),)

    def __post_init__(self) -> None:
        compress.parse(self.codec)

    @property
    def text(self) -> str:
        return f"compressed:{self.codec}"

    def learner(self, context: Context) -> Learner:
        return _Learner(context, compress.parse(self.codec))


class _Learner(Replica):
    def __init__(self, context: Context, codec: compress.Codec) -> None:
        super().__init__(context)
        self.codec = codec
        self.shapes = [tuple(p.shape) for _, p in self.names]
        self.error: Tensor | None = torch.zeros_like(self.grads) if codec.contracts else None

    def exchange(self, number: int) -> None:
        if self.error is not None:
            self.grads += self.error
        total, mine = packed_sum(
            self.grads, self.shapes, self.codec, self.context.beside, self.context.seed, number
        )
        if self.error is not None:
            torch.sub(self.grads, mine, out=self.error)
        self.grads.copy_(total)

    def own(self) -> Record:
        return Record() if self.error is None else Record(error=self.error.clone())

    def take_own(self, own: Record) -> None:
        if self.error is not None:
            self.error.copy_(own.error)
