"""A worker that holds parts of a model as torch's DTensors, which know how to become whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from atoll.distributed.learner import Context, Learner, objective
from atoll.distributed.reading import Share
from atoll.tensors import Record, Tensors

__all__ = ["Sharded", "local", "whole"]


def local(value: Tensor) -> Tensor:
    """What this worker holds of a tensor."""
    return value.to_local() if isinstance(value, DTensor) else value


def whole(value: Tensor) -> Tensor:
    """All of a tensor; every worker that holds a part of it must call this."""
    return value.full_tensor() if isinstance(value, DTensor) else value


class Sharded(Learner):
    """A module whose parameters are DTensors, or some of them. Each worker steps what it holds.

    Args:
        module: in parts already, in training mode. A parameter may be viewed in another shape than the task has it.
    """

    waits = False

    def __init__(self, context: Context, module: nn.Module) -> None:
        self.context, self.module = context, module
        self.params = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.shapes = {name: p.shape for name, p in context.task.module.named_parameters()}
        self.state = context.optimizer.init(self._local())

    def _local(self) -> Tensors:
        return Tensors({name: local(p.detach()) for name, p in self.params.items()})

    # --- a step -------------------------------------------------------------------------------------------------

    def step(self, number: int, share: Share, lr: float) -> Tensor:
        self.module.zero_grad()
        total = torch.zeros((), device=self.context.device)
        for rows in np.array_split(share.rows, self.context.accumulate):
            loss = objective(self.context, self.module, self.module, rows, share.count)
            self.pull(loss)
            total += loss.detach()
        with torch.no_grad():
            self.exchange()
            grads = {
                name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in self.params.items()
            }
            found = Tensors({name: local(grad) for name, grad in grads.items()})
            if self.context.clip is not None:
                norm = self.squares(grads).sqrt()
                found = found * (self.context.clip / norm.clamp(min=self.context.clip))
            self.advance(found, lr)
        return total

    def pull(self, loss: Tensor) -> None:
        """The backward pass; torch divides what it sums over workers by their number."""
        (loss * self.context.beside.size).backward()  # type: ignore[no-untyped-call]

    def exchange(self) -> None:
        """What is left to be done for the gradient to be the batch's."""

    def squares(self, grads: dict[str, Tensor]) -> Tensor:
        """The squared norm of the gradient."""
        return torch.stack([whole(each.square().sum()) for each in grads.values()]).sum()

    def advance(self, grads: Tensors, lr: float) -> None:
        """The optimiser's step on what this worker holds, in place."""
        now = self._local()
        new, self.state = self.context.optimizer.at_once(grads, self.state, now, lr, own=True)
        for name, value in now.items():
            if new[name].data_ptr() != value.data_ptr():
                value.copy_(new[name])

    # --- all of it ----------------------------------------------------------------------------------------------

    def _like(self, name: str, value: Tensor) -> Tensor:
        """A tensor of which this worker holds `value`, in parts as the parameter of that name is."""
        p = self.params[name]
        if not isinstance(p, DTensor):
            return value
        return DTensor.from_local(
            value, p.device_mesh, p.placements, shape=p.shape, stride=p.stride(), run_check=False
        )

    def _filled(self, held: Tensors) -> Tensors:
        return Tensors(
            {
                name: whole(self._like(name, value)).detach().clone().view(self.shapes[name])
                for name, value in held.items()
            }
        )

    def whole(self) -> Record | None:
        params = self._filled(self._local())
        state = Record(
            {
                name: self._filled(value) if isinstance(value, Tensors) else value.clone()
                for name, value in self.state.items()
            }
        )
        if self.context.links.rank:
            return None
        buffers = Tensors({name: whole(b).detach().clone() for name, b in self.module.named_buffers()})
        return Record(params=params, buffers=buffers, optimizer=state, own=Record())

    def _parts(self, tensors: Tensors) -> Tensors:
        found = {}
        for name, value in tensors.items():
            p = self.params[name]
            here = value.to(self.context.device).view(p.shape)
            if isinstance(p, DTensor):  # everybody has all of it: nobody need be sent a part
                here = distribute_tensor(here, p.device_mesh, p.placements, src_data_rank=None).to_local()
            found[name] = here.clone()
        return Tensors(found)

    def take(self, whole: Record) -> None:
        with torch.no_grad():
            for name, value in self._parts(whole.params).items():
                local(self.params[name].detach()).copy_(value)
            self.state = Record(
                {
                    name: self._parts(value) if isinstance(value, Tensors) else value.to(self.context.device)
                    for name, value in whole.optimizer.items()
                }
            )
            for name, b in self.module.named_buffers():
                local(b).copy_(whole.buffers[name])

    def figures(self) -> dict[str, Any]:
        held = self._local()
        return {"held": float(held.nbytes())}
