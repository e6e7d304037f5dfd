"""A shared representation and personal heads, trained in turns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from atoll.contract import ClientData, Plan, Population, Reply
from atoll.methods.parts.settings import require
from atoll.methods.parts.shared import split, with_body
from atoll.methods.personal.fedper import FedPer
from atoll.optimizers import clip_by_norm
from atoll.task import Batch, Task
from atoll.tensors import Record, Tensors

__all__ = ["FedRep", "batches"]


@dataclass(frozen=True, kw_only=True)
class FedRep(FedPer):
    """Fit the head to the body, then the body to the head.   Collins et al., ICML 2021, Algorithm 1

    client:  (b_k, h_k) <- (b_t, h_k as this client left it)
             for each batch of head_epochs:  h_k <- h_k - lr grad_h F_k(b_t, h_k; batch)
             for each batch of epochs:       b_k <- b_k - lr grad_b F_k(b_k, h_k; batch)
    server:  b_{t+1} = b_t + sum_k (n_k / n_S) (b_k - b_t)

    The part whose turn it is not stays as it is to the bit, buffers included, whatever the optimiser. Each part
    has an optimiser state of its own. A straggler does its head epochs first; it counts in the mean by the
    samples that it has read for the body.

    Args:
        head_epochs: local epochs a round on the head; they come first.
        epochs: local epochs a round on the body, after those on the head.
        steps: not for FedRep, whose turns are whole epochs.

    Traps: a zero gradient does not freeze anything under momentum, weight decay or Adam. The turns change after
    this client's own number of batches, which differs from client to client. Without BatchNorm small
    convolutional networks can collapse. The authors use lr=0.01, momentum=0.5, batches of 10 (or 50), and
    several more epochs on the head than on the body.
    """

    head_epochs: int = 10

    paper: ClassVar[str] = "Collins et al. 2021, Algorithm 1"
    cost: ClassVar[str] = "the body up and down; the head remembered; more epochs"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "head_layers", self.head_layers >= 1, "must be at least 1")
        require(self, "head_epochs", self.head_epochs >= 1, "must be at least 1")
        require(self, "steps", self.steps is None, "must be none: FedRep takes turns by epochs")

    def setup(self, task: Task, population: Population) -> Record:
        return with_body(super().setup(task, population), self.head_layers)

    def plan(self) -> Plan:
        return Plan(self.head_epochs + self.epochs, None, self.batch_size)

    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        local = super().begin(task, received, memory, data)
        body, head = split(local.params, self.private(task))
        return local.replace(
            optimizer=Record(head=self.solver().init(head), body=self.solver().init(body)),
            head_steps=batches(task, data.count, self.batch_size) * self.head_epochs,
            head_seen=torch.zeros_like(local.seen),
        )

    def step(self, task: Task, local: Record, batch: Batch) -> Record:
        on_head = local.steps < local.head_steps
        names = self.private(task)
        gradient, after = self.gradient(task, local, batch)
        slopes, params = split(gradient, names), split(local.params, names)
        old, new = split(local.buffers, names), split(after.buffers, names)
        body, body_state = self.turn(~on_head, slopes[0], local.optimizer.body, params[0], local.lr)
        head, head_state = self.turn(on_head, slopes[1], local.optimizer.head, params[1], local.lr)
        moved = {**chosen(~on_head, new[0], old[0]), **chosen(on_head, new[1], old[1])}
        return after.replace(
            params=Tensors({name: body[name] if name in body else head[name] for name in local.params}),
            buffers=Tensors({name: moved[name] for name in local.buffers}),
            optimizer=Record(head=head_state, body=body_state),
            head_seen=torch.where(on_head, after.seen, local.head_seen),
            steps=local.steps + 1,
        )

    def turn(
        self, mine: Tensor, gradient: Tensors, state: Record, params: Tensors, lr: Tensor
    ) -> tuple[Tensors, Record]:
        """A step of one part: new (params, optimiser state), or the old ones where the turn is not `mine`."""
        if self.clip:
            gradient = clip_by_norm(gradient, self.clip)
        stepped, moved = self.solver().update(gradient, state, params, lr * mine)  # no step at a rate of 0
        kept = {
            name: chosen(mine, value, state[name])
            if isinstance(value, Tensors)
            else torch.where(mine, value, state[name])
            for name, value in moved.items()
        }
        return stepped, Record(kept)

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        reply, memory = super().finish(task, local, data)
        weight = torch.minimum(local.seen - local.head_seen, data.count)  # the samples the body was fitted to
        return reply._replace(weight=weight), memory


def chosen(condition: Tensor, one: Tensors, other: Tensors) -> Tensors:
    """`one` where the condition holds, else `other`."""
    return Tensors({name: torch.where(condition, value, other[name]) for name, value in one.items()})


def batches(task: Task, count: Tensor, batch_size: int | None) -> Tensor:
    """How many batches a client with `count` samples reads in an epoch, as engines cut them.

    With BatchNorm in the model a last batch of a single sample joins the one before it.
    """
    count = count.to(torch.int64)
    size = count.clamp(min=1) if batch_size is None else count.clamp(1, batch_size)
    return count // size + (count % size > int(task.normalises))
