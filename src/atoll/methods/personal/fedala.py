"""Adaptive local aggregation: how much of the received model a client takes, weight by weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from atoll import seeds
from atoll.contract import ClientData, Plan, Population, Program, Replies, Reply, Work
from atoll.methods.fedavg import FedAvg
from atoll.methods.parts.settings import require
from atoll.methods.parts.shared import head, trainable
from atoll.methods.parts.shared import layers as every
from atoll.methods.personal.fedrep import batches, chosen
from atoll.optimizers import clip_by_norm
from atoll.task import Batch, Task
from atoll.tensors import Record, Tensors

__all__ = ["FedALA"]


@dataclass(frozen=True, kw_only=True)
class FedALA(FedAvg):
    """Learn, weight by weight, how much of the received model to take.   Zhang et al., AAAI 2023, Algorithm 1

    client:  for each tensor of the top layers, with w_p the model the client ended its last round with,
             u = w_p + (w_t - w_p) a;   for each batch of ala_passes (first_passes, in the client's second round):
             a <- clip(a - ala_lr grad_u F_k(u; batch) (w_t - w_p), 0, 1), the rest of the model being that of w_t;
             w_k <- u in the top layers and w_t below them, trained as in FedAvg
    server:  as FedAvg

    A client predicts with u (and w_t below), made from the latest w_t; then what it has learnt of a is forgotten.
    a starts at 1, which is w_t, and is remembered from round to round. A client's first round changes no a, since
    w_p is w_t; with ala_passes=0 no round does, and this is FedAvg, to the bit. Optimiser and buffers rest while a
    is learnt. A straggler learns a first.

    Args:
        layers: how many of the top layers are aggregated so, counted from the output (see `FedPer`).
        share: the part of each batch on which a client learns a, drawn anew every time.
        ala_lr: step size for a.
        ala_passes: passes for a over the client's data, in batches, every round.
        first_passes: how many it makes in a client's second round, the first in which a counts. The paper goes on
            until the loss is steady; the authors' code does not stop before it has ten losses to compare.
        steps: not for FedALA, whose passes for a are counted in epochs.

    Traps: the gradient is multiplied by (w_t - w_p) elementwise, which is the chain rule for u. The loss is seen with
    u in place, not w_p, and a is clipped after every step. w_p is what the client had trained, not what the
    server made of it. A few steps on all the data at once leave a near 1, and the client with a global model that
    may be worse than its own.
    """

    layers: int = 1
    share: float = 0.8
    ala_lr: float = 1.0
    ala_passes: int = 1
    first_passes: int = 10

    paper: ClassVar[str] = "Zhang et al. 2023 (FedALA), Algorithm 1"
    cost: ClassVar[str] = "1 model up, 1 down; top layers remembered twice; ala_passes more"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "layers", self.layers >= 1, "must be at least 1")
        require(self, "share", 0 < self.share <= 1, "must be in (0, 1]")
        require(self, "ala_lr", self.ala_lr > 0, "must be above 0")
        require(self, "ala_passes", self.ala_passes >= 0, "must not be negative")
        require(self, "first_passes", self.first_passes >= self.ala_passes, "must be at least ala_passes")
        require(self, "steps", self.steps is None, "must be none: FedALA counts in epochs")

    def programs(self) -> Mapping[str, Program]:
        return {"personal": Aggregated(self)}

    # ---- server half -------------------------------------------------------------------------------------

    def setup(self, task: Task, population: Population) -> Record:
        met = torch.zeros(population.clients, dtype=torch.uint8)  # rounds a client took part in: 0, 1 or more
        return super().setup(task, population).replace(met=met)

    def broadcast(self, state: Record, cohort: Sequence[int]) -> Work:
        work = super().broadcast(state, cohort)
        if not self.ala_passes:
            return work
        more = self.first_passes - self.ala_passes
        second = [k for k, met in zip(cohort, state.met[list(cohort)].tolist(), strict=True) if met == 1]
        own = {k: Record(passes=torch.tensor(float(self.ala_passes))) for k in cohort}
        own |= {k: Record(passes=torch.tensor(float(self.first_passes))) for k in second}
        return replace(work, own=own, passes=dict.fromkeys(second, more))

    def update(self, state: Record, replies: Replies) -> Record:
        return self.adapt(super().update(state, replies), replies)

    def adapt(self, state: Record, replies: Replies) -> Record:
        """Who has taken part once more."""
        met = state.met.clone()
        met[replies.clients] = (met[replies.clients] + 1).clamp(max=2)
        return state.replace(met=met)

    def leave(self, state: Record, clients: Sequence[int]) -> Record:
        met = state.met.clone()
        met[list(clients)] = 0
        return state.replace(met=met)

    # ---- client half -------------------------------------------------------------------------------------

    def plan(self) -> Plan:
        return Plan(self.ala_passes + self.epochs, None, self.batch_size)

    def remember(self, task: Task, received: Record) -> Record:
        last = top(task, received.params, self.layers)
        return Record(last=last, weights=last.map(torch.ones_like))

    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        local = super().begin(task, received, memory, data)
        if not self.ala_passes:
            return local
        return local.replace(
            **self.taken(received, memory),
            ala_steps=batches(task, data.count, self.batch_size) * received.passes,
        )

    def taken(self, received: Record, memory: Record) -> Record:
        """The model with u in its top layers, and what a changes of it: {params, theirs, gap, weights}."""
        theirs = memory.last.map_names(lambda name, _: received.params[name])
        gap, weights = theirs - memory.last, memory.weights
        params = Tensors({**received.params, **between(theirs, gap, weights)})
        return Record(params=params, theirs=theirs, gap=gap, weights=weights)

    def learnt(self, local: Record, gradient: Tensors) -> tuple[Tensors, Tensors]:
        """u and a after a step for a."""
        weights = Tensors(
            {n: (a - self.ala_lr * gradient[n] * local.gap[n]).clamp(0, 1) for n, a in local.weights.items()}
        )
        return between(local.theirs, local.gap, weights), weights

    def step(self, task: Task, local: Record, batch: Batch) -> Record:
        if not self.ala_passes:
            return super().step(task, local, batch)
        learns = local.steps < local.ala_steps
        part = batch._replace(mask=torch.where(learns, sampled(batch, self.share).mask, batch.mask))
        gradient, after = self.gradient(task, local, part)
        upper, weights = self.learnt(local, gradient)
        if self.clip:
            gradient = clip_by_norm(gradient, self.clip)
        rate = local.lr * ~learns  # no step at a rate of 0
        trained, optimizer = self.solver().update(gradient, local.optimizer, local.params, rate)
        rested = {
            name: chosen(learns, local.optimizer[name], value)
            if isinstance(value, Tensors)
            else torch.where(learns, local.optimizer[name], value)
            for name, value in optimizer.items()
        }
        return after.replace(
            params=Tensors({**trained, **chosen(learns, upper, trained)}),
            weights=chosen(learns, weights, local.weights),
            optimizer=Record(rested),
            buffers=chosen(learns, local.buffers, after.buffers),
            loss=torch.where(learns, local.loss, after.loss),
            seen=torch.where(learns, local.seen, after.seen),
            steps=local.steps + 1,
        )

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        reply, memory = super().finish(task, local, data)
        weights = local.weights if self.ala_passes else memory.weights
        last = memory.last.map_names(lambda name, _: local.params[name])
        return reply, memory.replace(last=last, weights=weights)


@dataclass(frozen=True)
class Aggregated(Program):
    """The client program that aggregates the received model with the client's and judges it on the test data."""

    method: FedALA

    @property
    def reads(self) -> tuple[str, ...]:
        return ("test",)

    def plan(self) -> Plan:
        return Plan(self.method.ala_passes, None, self.method.batch_size)

    def remember(self, task: Task, received: Record) -> Record:
        return self.method.remember(task, received)

    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        local = (
            Record(params=received.params)
            if not self.method.ala_passes
            else self.method.taken(received, memory)
        )
        return local.replace(buffers=received.buffers, memory=memory)

    def step(self, task: Task, local: Record, batch: Batch) -> Record:
        gradient, _, _ = task.gradient(local.params, local.buffers, sampled(batch, self.method.share))
        upper, weights = self.method.learnt(local, gradient)
        return local.replace(params=Tensors({**local.params, **upper}), weights=weights)

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        assert data.test is not None
        totals = task.totals(local.params, local.buffers, data.test)
        return Reply(Record(), totals.count, totals), local.memory


def top(task: Task, params: Tensors, layers: int) -> Tensors:
    """The parameters of so many layers that the forward uses last, or of all."""
    names = head(task, min(layers, len(trainable(task, every(task)))))
    return Tensors({name: value for name, value in params.items() if name in names})


def between(theirs: Tensors, gap: Tensors, weights: Tensors) -> Tensors:
    """w_p + (w_t - w_p) a, written so that a = 1 gives w_t to the bit."""
    return Tensors({n: value - gap[n] * (1 - weights[n]) for n, value in theirs.items()})


def sampled(batch: Batch, share: float) -> Batch:
    """A random part of a batch, of at least one sample."""
    draws = torch.where(batch.mask > 0, seeds.uniform(batch.key, (len(batch.mask),)), 2.0)
    chosen = draws <= draws.amin().clamp(min=share)
    return batch._replace(mask=batch.mask * chosen)
