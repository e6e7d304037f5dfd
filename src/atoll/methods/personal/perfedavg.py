"""Meta-learning: a shared model from which one step makes a good personal one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from atoll import seeds
from atoll.contract import ClientData, Plan, Program, Reply
from atoll.methods.fedavg import FedAvg
from atoll.methods.parts.settings import require
from atoll.task import Batch, Task
from atoll.tensors import Record, Tensors, map_leaves

__all__ = ["PerFedAvg"]


@dataclass(frozen=True, kw_only=True)
class PerFedAvg(FedAvg):
    """Learn the model that is best after one step.   Fallah, Mokhtari, Ozdaglar, NeurIPS 2020, Algorithm 1

    client:  w_k <- w_t;  each batch is cut in two or three parts D, D', D'';  for each batch
             u = w_k - inner_lr grad F_k(w_k; D);   g = grad F_k(u; D')
             first-order:   w_k <- w_k - lr g
             hessian-free:  w_k <- w_k - lr (g - inner_lr h),
                            h = (grad F_k(w_k + d g; D'') - grad F_k(w_k - d g; D'')) / (2 d)
             to predict:  u = w_t - inner_lr grad F_k(w_t; batch)
    server:  w_{t+1} = w_t + mean_S (w_k - w_t)

    What is minimised is the mean over clients of F_k(w - inner_lr grad F_k(w)), exactly with "hessian-free" (up to
    noise and the finite difference). Clients count equally, whatever their data. The adapted model is made anew
    whenever it is asked for, and forgotten.

    Args:
        lr: size of the outer steps, beta in the paper.
        inner_lr: size of the step a client adapts by, alpha in the paper; it knows no schedule.
        variant: "first-order" takes h as 0, "hessian-free" finds it by a finite difference.
        width: half-width of the difference, d.
        adapt_steps: steps, a batch each, before a client predicts; what is learnt is made for one.

    Traps: the parts must not overlap, or the outer gradient is biased. The outer step starts at w_k, not at u: a
    step from u would be plain training. A part without a sample (the last batch of an epoch may be that short)
    is read from the first part.
    """

    lr: float = 0.001
    inner_lr: float = 0.01
    variant: Literal["first-order", "hessian-free"] = "first-order"
    width: float = 0.001
    adapt_steps: int = 1

    paper: ClassVar[str] = "Fallah et al. 2020, Algorithm 1"
    cost: ClassVar[str] = "1 model up, 1 down; a step more to predict"

    def __post_init__(self) -> None:
        super().__post_init__()
        variants = ("first-order", "hessian-free")
        require(self, "variant", self.variant in variants, 'must be "first-order" or "hessian-free"')
        require(self, "inner_lr", self.inner_lr >= 0, "must not be negative")
        require(self, "width", self.width > 0, "must be above 0")
        require(self, "adapt_steps", self.adapt_steps >= 1, "must be at least 1")
        fits = self.batch_size is None or self.batch_size >= self.parts
        require(self, "batch_size", fits, f"must be at least {self.parts}, a sample for each part")

    @property
    def parts(self) -> int:
        """Into how many parts a batch is cut."""
        return 2 if self.variant == "first-order" else 3

    def programs(self) -> Mapping[str, Program]:
        return {"personal": Adapted(self)}

    def gradient(self, task: Task, local: Record, batch: Batch) -> tuple[Tensors, Record]:
        parts = disjoint(batch, self.parts)
        inner, loss, buffers = task.gradient(local.params, local.buffers, parts[0])
        adapted = local.params - inner * self.inner_lr
        gradient, _, buffers = task.gradient(adapted, buffers, parts[1])
        if self.variant == "hessian-free":
            ahead, _, _ = task.gradient(local.params + gradient * self.width, buffers, parts[2])
            behind, _, _ = task.gradient(local.params - gradient * self.width, buffers, parts[2])
            gradient = gradient - (ahead - behind) * (self.inner_lr / (2 * self.width))
        return gradient, self.tallied(local, batch, loss, buffers)

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        reply, memory = super().finish(task, local, data)
        return reply._replace(weight=torch.ones_like(reply.weight)), memory


@dataclass(frozen=True)
class Adapted(Program):
    """The client program that takes the inner step from the received model and judges it on the test data."""

    method: PerFedAvg

    @property
    def reads(self) -> tuple[str, ...]:
        return ("test",)

    def plan(self) -> Plan:
        return Plan(0, self.method.adapt_steps, self.method.batch_size)

    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        return Record(params=received.params, buffers=received.buffers, memory=memory)

    def step(self, task: Task, local: Record, batch: Batch) -> Record:
        gradient, _, buffers = task.gradient(local.params, local.buffers, batch)
        return local.replace(params=local.params - gradient * self.method.inner_lr, buffers=buffers)

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        assert data.test is not None
        totals = task.totals(local.params, local.buffers, data.test)
        return Reply(Record(), totals.count, totals), local.memory


def disjoint(batch: Batch, parts: int) -> list[Batch]:
    """A batch cut into parts that share no sample, each with a random stream of its own.

    Samples are dealt in turn, so that padding, which comes last, falls on all parts alike. Fewer samples than
    parts leave some empty; the first part, which then holds one sample, takes their place.
    """
    first = Batch(batch.inputs[::parts], batch.targets[::parts], batch.mask[::parts], batch.key)
    dealt = [first._replace(key=seeds.fold(batch.key, 1))]
    for at in range(1, parts):
        rows = len(batch.mask[at::parts])
        if not rows:
            dealt.append(first._replace(key=seeds.fold(batch.key, at + 1)))
            continue
        empty = batch.mask[at::parts].sum() == 0

        def take(own: Tensor, instead: Tensor, at: int = at, empty: Tensor = empty) -> Tensor:
            mine = own[at::parts]
            return torch.where(empty, instead[: len(mine)], mine)

        inputs, targets, mask = map_leaves(take, batch[:3], first[:3])
        dealt.append(Batch(inputs, targets, mask, seeds.fold(batch.key, at + 1)))
    return dealt
