"""A gradient that several processes compute, each of its own part of a batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from atoll import seeds
from atoll.parts import each_part
from atoll.task import Batch, Task
from atoll.tensors import Tensors

__all__ = ["Shared"]

_OWN = 0x73696C6F
"""What a helper draws lies apart from what the first process draws."""


class Shared(Task):
    """A task whose gradient of a batch is computed in parts, one in each process of a silo.

    (1 / n) sum_i sum_{x of part i} grad l(w; x), n the real samples of the batch. Parts differ by a row at most.
    Batches inside another function transform are computed whole, by everybody.
    """

    def __init__(self, task: Task, rank: int, size: int, add: Callable[[Tensor], None]) -> None:
        self.__dict__.update(task.__dict__)
        self.rank, self.size, self.add = rank, size, add

    def gradient(self, params: Tensors, buffers: Tensors, batch: Batch) -> tuple[Tensors, Tensor, Tensors]:
        if any(torch._C._functorch.is_functorch_wrapped_tensor(value) for value in params.values()):
            return super().gradient(params, buffers, batch)
        part = self._part(batch)
        gradient, loss, moved = super().gradient(params, buffers, part)
        share = part.mask.sum() / batch.mask.sum().clamp(min=1)
        flat = torch.cat([each.reshape(-1) for each in (*gradient.values(), loss)]) * share
        self.add(flat)
        *found, loss = torch.split(flat, [each.numel() for each in (*gradient.values(), loss)])
        back = {
            name: value.view(like.shape).to(like.dtype)
            for (name, like), value in zip(gradient.items(), found, strict=True)
        }
        return Tensors(back), loss.reshape(()), moved

    def _part(self, batch: Batch) -> Batch:
        """This process's rows; one of mask 0 where there are fewer rows than processes."""
        count = len(batch.mask)
        first, last = (count * at // self.size for at in (self.rank, self.rank + 1))
        mask = batch.mask[first:last]
        if first == last:
            first, last, mask = 0, 1, torch.zeros_like(batch.mask[:1])
        key = seeds.fold(seeds.fold(batch.key, _OWN), self.rank) if self.rank else batch.key
        return Batch(
            each_part(lambda value: value[first:last], batch.inputs), batch.targets[first:last], mask, key
        )
