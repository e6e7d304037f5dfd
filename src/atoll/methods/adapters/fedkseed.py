"""Training without gradients, of which only seeds and scalars travel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from atoll import seeds
from atoll.contract import Change, ClientData, Method, Plan, Population, Replies, Reply, Rule, Work
from atoll.methods.parts.buffers import RULES, form, mean_buffers, moved
from atoll.methods.parts.settings import require, typed
from atoll.optimizers import schedule_factor
from atoll.task import Batch, Task
from atoll.tensors import Record, Tensors

__all__ = ["FedKSeed", "replayed"]

_NUMBERS = 1 << 20
"""Of directions that are in memory at once."""


@dataclass(frozen=True, kw_only=True)
class FedKSeed(Method):
    """Walk along directions that K seeds give, send how far.   Qin et al., ICML 2024 (arXiv 2312.06353)

    client:  w <- w_0 + sum_j s_j z_j,  z_j = N(0, I) of seed j;   then, step by step, with j drawn from K seeds:
             g = (F_k(w + eps z_j; batch) - F_k(w - eps z_j; batch)) / (2 eps);   w <- w - lr g z_j
             sends (j, -lr g) of each step
    server:  s_j <- s_j + sum_k (n_k / n_S) (what client k sends of j);   the model is w_0 + sum_j s_j z_j

    A round costs K scalars down, and an index of two bytes and a scalar for each step up, whatever the size of the
    model: with 4096 seeds and 200 steps 17.6 kB. w_0 follows from the run's seed, or all have it. The sum is
    taken in the order of the seeds, by everybody, so that all have the same model to the bit. No backward pass is made:
    memory is that of a forward pass. Works on adapters and on whole models.

    Args:
        lr: step size, far below that of a gradient: a step is about the root of the number of parameters longer.
        steps: local steps a round.
        batch_size: samples a batch; None means all of a client's data.
        seeds: K, how many directions there are.
        eps: half of the distance over which losses are compared.
        schedule: learning rate over rounds, as in FedAvg.

    In a channel, `clip`, `local` and codecs act on a client's scalars; there is no feedback, since what is lost of one
    round is of other directions than the next one's.

    Traps: a step tells of one direction in so many dimensions. Start from a model that has learned, as the paper does,
    and expect many more steps than with gradients. A node computes K directions before it begins: K times as many
    normal numbers as there are parameters.
    """

    lr: float = 0.0001
    steps: int = 200
    batch_size: int | None = 32
    seeds: int = 4096
    eps: float = 0.001
    schedule: str = "constant"

    reduction: ClassVar[Literal["mean", "each"]] = "each"
    rules: ClassVar[Mapping[str, Rule]] = RULES
    change: ClassVar[Change | None] = Change(
        "update"
    )  # which no reply has: what moves is known by the server alone
    in_step: ClassVar[bool] = True
    host: ClassVar[tuple[str, ...]] = ("sums", "key")
    paper: ClassVar[str] = "Qin et al. 2024 (FedKSeed)"
    cost: ClassVar[str] = "seeds and scalars: 6 bytes a step up, 4 a seed down"

    def __post_init__(self) -> None:
        typed(self)
        require(self, "lr", self.lr > 0, "must be above 0")
        require(self, "steps", self.steps >= 1, "must be at least 1")
        require(
            self, "batch_size", self.batch_size is None or self.batch_size >= 1, "must be at least 1, or full"
        )
        require(self, "seeds", 1 <= self.seeds <= 32768, "must be between 1 and 32768")
        require(self, "eps", self.eps > 0, "must be above 0")
        schedule_factor(self.schedule, 0)

    # ---- server half -----------------------------------------------------------------------------------------

    def setup(self, task: Task, population: Population) -> Record:
        params, buffers = task.initial()
        key = torch.tensor(seeds.address(population.seed, "fedkseed"))
        sums = torch.zeros(self.seeds)
        return Record(params=params, buffers=buffers, start=params, sums=sums, key=key, round=0)

    def broadcast(self, state: Record, cohort: Sequence[int]) -> Work:
        lr = torch.tensor(self.lr * schedule_factor(self.schedule, state.round))
        sent = Record(buffers=state.buffers, lr=lr, sums=state.sums, key=state.key)
        return Work(sent.replace(params=state.params), travels=sent)

    def update(self, state: Record, replies: Replies) -> Record:
        sums = state.sums.double()
        for reply in replies.each:
            share = float(reply.weight) / replies.weight
            walked = reply.values["scalar"].cpu().double() * share
            # An index is what somebody says: one that is no seed's stands for one that is, and breaks no run.
            sums.index_add_(0, reply.values["index"].cpu().long() % self.seeds, walked)
        sums = sums.to(state.sums.dtype)
        pairs = zip(replies.clients, replies.each, strict=True)
        return state.replace(
            params=replayed(state.start, sums, state.key),
            buffers=mean_buffers(state.buffers, pairs),
            sums=sums,
            round=state.round + 1,
        )

    def expects(self, state: Record) -> Record:
        index, scalar = torch.zeros(self.steps, dtype=torch.int16), torch.zeros(self.steps)
        return Record(index=index, scalar=scalar, **form(state.buffers))

    # ---- client half -----------------------------------------------------------------------------------------

    def plan(self) -> Plan:
        return Plan(0, self.steps, self.batch_size)

    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        params = received.get("params")
        if params is None:  # on a machine of its own, which was sent no model
            start = task.initial()[0].map(lambda value: value.to(received.lr.device))
            params = replayed(start, received.sums, received.key)
        zero = torch.zeros_like(received.lr)
        return Record(
            params=params,
            buffers=received.buffers,
            received=received,
            memory=memory,
            index=torch.zeros(self.steps, dtype=torch.int16, device=zero.device),
            scalar=torch.zeros(self.steps, device=zero.device),
            steps=zero,
            seen=zero,
            loss=zero,
        )

    def step(self, task: Task, local: Record, batch: Batch) -> Record:
        drawn = (seeds.uniform(seeds.fold(batch.key, 7), ()) * self.seeds).long().clamp(max=self.seeds - 1)
        z = direction(local.params, seeds.fold(local.received.key, drawn))
        above, buffers = task.loss(local.params + z * self.eps, local.buffers, batch)
        below, _ = task.loss(local.params - z * self.eps, local.buffers, batch)
        walk = (-local.received.lr * ((above - below) / (2 * self.eps))).to(local.scalar.dtype)
        here = torch.arange(self.steps, device=walk.device) == local.steps
        rows = batch.mask.sum()
        return local.replace(
            params=local.params + z * walk,
            buffers=buffers,
            index=torch.where(here, drawn.to(local.index.dtype), local.index),
            scalar=torch.where(here, walk, local.scalar),
            steps=local.steps + 1,
            seen=local.seen + rows,
            loss=local.loss + ((above + below) / 2 * rows).to(local.loss.dtype),
        )

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        buffers = moved(local.buffers, local.received.buffers)
        weight = torch.minimum(local.seen, data.count)
        metrics = Record(loss=local.loss, count=local.seen, steps=local.steps)
        return Reply(Record(index=local.index, scalar=local.scalar, **buffers), weight, metrics), local.memory


def direction(params: Tensors, key: Tensor) -> Tensors:
    """Standard normal numbers in the form of these parameters, of a key."""
    found = params.unflat(seeds.normals(key, params.size()))
    return found.map_names(lambda name, value: value.to(params[name].dtype))


def replayed(start: Tensors, sums: Tensor, key: Tensor) -> Tensors:
    """w_0 + sum_j s_j z_j, in the order of the seeds.

    Args:
        start: w_0.
        sums: s [K].
        key: of all directions; that of seed j is what it gives with j.
    """
    found, count = start.flat(), start.size()
    key, sums = key.to(found.device), sums.to(found.device)
    length = max(1, _NUMBERS // count)
    for first in range(0, len(sums), length):
        seed = torch.arange(first, min(first + length, len(sums)), device=found.device)
        directions = torch.vmap(lambda one: seeds.normals(one, count))(seeds.fold(key, seed))
        for z, s in zip(directions, sums[first : first + length], strict=True):
            found = found + z * s
    return start.unflat(found).map_names(lambda name, value: value.to(start[name].dtype))
