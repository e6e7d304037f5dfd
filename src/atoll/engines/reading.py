"""What a client sees of its data and when: the order of its batches, its whole splits, its random streams."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atoll import seeds
from atoll.contract import ClientData, Job, Order, Plan, Program
from atoll.data import FederatedData, Samples
from atoll.data.samples import IntArray
from atoll.data.weights import FloatArray
from atoll.parts import Inputs
from atoll.task import Batch, Task

__all__ = [
    "Reading",
    "client_data",
    "gather",
    "mixed",
    "of_stage",
    "reading",
    "stacked",
    "step_keys",
    "the_order",
    "whole",
    "whole_key",
    "whole_keys",
]


@dataclass(frozen=True)
class Reading:
    """The order in which a client reads its samples: `index` [steps, b] into its training rows, `mask` alike."""

    index: np.ndarray[Any, np.dtype[np.int64]]
    mask: np.ndarray[Any, np.dtype[np.float32]]


NOTHING = Reading(np.zeros((0, 1), np.int64), np.zeros((0, 1), np.float32))
"""No batches at all."""


def reading(
    plan: Plan, samples: int, rng: np.random.Generator, *, epochs: int | None = None, merge_last: bool = False
) -> Reading:
    """Batches for one client's round.

    Every epoch reads all samples in a new order; the last batch of an epoch may be short, and its row is padded with
    index 0 and mask 0. With `merge_last` (models with BatchNorm) a last batch of one sample joins the batch before it.

    Poisson batches (`Plan.poisson`) are of any size, and may be empty.
    """
    passes = plan.epochs if epochs is None else epochs
    size = min(plan.batch_size or samples, samples)
    if samples == 0 or (passes == 0 and plan.steps is None):
        return NOTHING
    last = samples % size
    joined = merge_last and last == 1 and samples > size
    steps, width = samples // size + (1 if last and not joined else 0), size + int(joined)
    if plan.poisson:
        return _drawn(passes * steps if plan.steps is None else plan.steps, size, samples, rng)
    if plan.steps is not None:
        passes = -(-plan.steps // steps)
    index = np.zeros((passes, steps, width), np.int64)
    mask = np.zeros((steps, width), np.float32)
    whole = steps * size if not last or joined else (steps - 1) * size  # samples in full batches
    mask[: whole // size, :size] = 1.0
    if joined:
        mask[-1, -1] = 1.0
    elif last:
        mask[-1, :last] = 1.0
    for epoch in range(passes):
        order = rng.permutation(samples)
        index[epoch, : whole // size, :size] = order[:whole].reshape(-1, size)
        if joined:
            index[epoch, -1, -1] = order[-1]
        elif last:
            index[epoch, -1, :last] = order[whole:]
    rows, real = index.reshape(-1, width), np.tile(mask, (passes, 1))
    return Reading(rows[: plan.steps], real[: plan.steps])


def _drawn(steps: int, size: int, samples: int, rng: np.random.Generator) -> Reading:
    """Batches that have each sample with the chance size / samples, independently.

    Their rows have room for more than two standard deviations above the mean, and for the largest: few widths, which
    are captured once, and no batch is cut.
    """
    counts = rng.binomial(samples, size / samples, steps)
    grain = math.ceil(math.sqrt(size * (1 - size / samples)))  # about a standard deviation
    room = max(2, -(-max(int(counts.max(initial=0)) - size, 0) // max(grain, 1)))
    width = min(size + room * grain, samples)
    index, mask = np.zeros((steps, width), np.int64), np.zeros((steps, width), np.float32)
    for step, count in enumerate(counts):  # so many, then which: any of them with the same chance
        index[step, :count] = rng.choice(samples, count, replace=False, shuffle=False)
        mask[step, :count] = 1.0
    return Reading(index, mask)


def mixed(
    plan: Plan, source: IntArray, shares: FloatArray, rng: np.random.Generator, *, epochs: int | None = None
) -> Reading:
    """Batches for one client's round whose samples come from sources in these shares.

    Of all samples that the round reads, each source gives its share, up to one, in a random order; it is read through,
    in a new order each time, as often as that takes. All batches are full, and an epoch is as many of them as its
    samples fill.

    Args:
        source: of each sample, 0 to k - 1, [n].
        shares: of each source, [k]; their sum is 1.
    """
    samples, passes = len(source), plan.epochs if epochs is None else epochs
    size = min(plan.batch_size or samples, samples)
    steps = passes * -(-samples // size) if plan.steps is None else plan.steps
    ends = np.floor(np.cumsum(shares) * (steps * size) + rng.random()).astype(np.int64)
    ends[-1] = steps * size
    picked = []
    for each, count in enumerate(np.diff(ends, prepend=0).tolist()):
        own = np.flatnonzero(source == each)
        picked += [rng.permutation(own) for _ in range(count // len(own))]
        picked.append(rng.permutation(own)[: count % len(own)])
    index = rng.permutation(np.concatenate(picked)).reshape(steps, size)
    return Reading(index, np.ones(index.shape, np.float32))


def the_order(order: Order, plan: Plan, task: Task, data: FederatedData) -> Reading:
    """The reading of one client in one round: a function of (seed, round, client) only."""
    samples = data.size(order.client)
    if not samples or (plan.steps is None and not (plan.epochs if order.epochs is None else order.epochs)):
        return NOTHING
    rng = seeds.rng(order.seed, "order", order.round, order.client)
    if data.mixture is not None:
        source, shares = data.mixture.sources[order.client], data.mixture.shares[order.client]
        found = mixed(plan, source, shares, rng, epochs=order.epochs)
    else:
        found = reading(plan, samples, rng, epochs=order.epochs, merge_last=task.normalises)
    return found if order.limit is None else Reading(found.index[: order.limit], found.mask[: order.limit])


def stacked(
    readings: Sequence[Reading], rows: Sequence[np.ndarray[Any, Any]], width: int
) -> tuple[np.ndarray[Any, np.dtype[np.int64]], np.ndarray[Any, np.dtype[np.float32]]]:
    """The readings of clients side by side: `index` [steps, clients, width] into samples that are joined, `mask` alike.

    `rows` say where each client's samples are among the joined ones. Shorter readings are padded with mask 0.
    """
    steps = max((len(each.index) for each in readings), default=0)
    index = np.zeros((steps, len(readings), width), np.int64)
    mask = np.zeros((steps, len(readings), width), np.float32)
    for at, (read, own) in enumerate(zip(readings, rows, strict=True)):
        count, b = read.index.shape
        index[:count, at, :b] = own[read.index]
        mask[:count, at, :b] = read.mask
    return index, mask


def gather(samples: Samples, index: Tensor) -> tuple[Inputs, Tensor]:
    """Inputs and targets of the samples at `index` [n]."""
    return samples.inputs.index_select(0, index), samples.targets.index_select(0, index)


def step_keys(job: Job | Order, clients: Sequence[int], steps: int) -> Tensor:
    """Random streams of the steps of clients: int64 [clients, steps]."""
    own = torch.tensor(seeds.addresses(job.seed, "step", job.round, clients))
    return seeds.fold(own.unsqueeze(1), torch.arange(steps).unsqueeze(0))


def whole_keys(job: Job | Order, clients: Sequence[int], stage: str) -> Tensor:
    """Random streams of "begin" or "finish" of clients: int64 [clients]."""
    return torch.tensor(seeds.addresses(job.seed, stage, job.round, clients))


def whole_key(order: Order, stage: str, device: torch.device) -> Tensor:
    """Random stream of "begin" or "finish" of one client: an int64 scalar."""
    own = seeds.address(order.seed, stage, order.round, order.client)
    return torch.scalar_tensor(own, dtype=torch.int64, device=device)  # a third of what `torch.tensor` takes


def whole(samples: Samples | None, key: Tensor, device: torch.device) -> Batch | None:
    """A split as one unpadded batch."""
    if samples is None or samples.count == 0:
        return None
    inputs, targets = samples.inputs.to(device), samples.targets.to(device)
    return Batch(inputs, targets, torch.ones(len(targets), device=device), key)


def client_data(data: FederatedData, order: Order, program: Program, device: torch.device) -> ClientData:
    """What `begin` of one client sees."""
    key = whole_key(order, "begin", device)
    splits = {split: whole(data.samples(order.client, split), key, device) for split in program.reads}
    return ClientData(torch.scalar_tensor(data.size(order.client), device=device), key, **splits)


def of_stage(data: ClientData, keys: Tensor) -> ClientData:
    """The same data with the random streams of another stage."""
    count, _, *splits = data
    return ClientData(count, keys, *(None if part is None else part._replace(key=keys) for part in splits))
