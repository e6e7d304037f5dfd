"""What every engine shares: the job it is given, the order in which clients read data, and what it gives back."""

from __future__ import annotations

import importlib
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from atoll import seeds
from atoll.data import FederatedData, Samples
from atoll.engines.probe import probe
from atoll.method import ClientData, Method, Plan, Program, Reduction, Replies, Reply, Work, screen
from atoll.task import Batch, Task
from atoll.tensors import Record, leaves

__all__ = ["Engine", "Job", "Memories", "Outcome", "Reading", "reading", "threads"]


class Memories(Protocol):
    """Where clients' memories live between rounds."""

    def get(self, client: int) -> Record | None: ...

    def put(self, client: int, memory: Record) -> None: ...


@dataclass(frozen=True)
class Job:
    """One round's client work: who runs which program on what.

    `clients` are positions in the population, sorted. `epochs` holds the local epochs of those that do fewer than
    planned. `expected` is the form a reply must have unless the work says otherwise.
    """

    method: Method
    work: Work
    clients: Sequence[int]
    round: int
    seed: int
    expected: Record = field(default_factory=Record)
    epochs: Mapping[int, int] = field(default_factory=dict)
    limit: int | None = None
    """Cut every client short after so many steps (for trials)."""

    cohort: int = 1
    """How many clients the whole round has (a worker's job holds some of them)."""

    @property
    def reduction(self) -> Literal["mean", "each"]:
        return self.work.reduction or self.method.reduction

    @property
    def program(self) -> Program:
        return self.method.program(self.work.program)

    def form(self, client: int) -> Record:
        """The form that this client's reply must have."""
        return self.work.forms.get(client, self.expected)


@dataclass(frozen=True)
class Outcome:
    """How one client's work ended: its pooled sums, and why its reply was refused, if it was."""

    client: int
    weight: float
    metrics: Mapping[str, float]
    nbytes: int
    refused: str | None = None
    begun: float = 0.0
    """When the work began and ended, by `time.perf_counter`, which processes of one machine share."""
    ended: float = 0.0
    probe: Tensor | None = field(default=None, compare=False)
    """A few coordinates of the update (see `atoll.engines.probe`); of refused replies None."""


class Engine(ABC):
    """Runs client programs. All engines give the same replies for the same job, up to rounding."""

    name: ClassVar[str]

    def __init__(self, task: Task, data: FederatedData, device: torch.device) -> None:
        self.task = task
        self.data = data
        self.device = device

    @abstractmethod
    def run(self, job: Job, memories: Memories) -> tuple[Replies | None, list[Outcome]]:
        """Run a job; write the memories of the clients whose replies were accepted; reduce the replies."""

    def describe(self) -> str:
        """The engine and how it is set, in a few words."""
        return self.name

    def settled(self) -> tuple[str, int | None]:
        """(name, workers) of the engine that gives the same bits again."""
        return self.name, None

    def close(self) -> None:  # noqa: B027 - most engines hold nothing
        """Release worker processes and the like."""


# --- reading data ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """The order in which a client reads its samples: `index` [steps, b] into its training rows, `mask` alike."""

    index: np.ndarray[Any, np.dtype[np.int64]]
    mask: np.ndarray[Any, np.dtype[np.float32]]


def reading(
    plan: Plan, samples: int, rng: np.random.Generator, *, epochs: int | None = None, merge_last: bool = False
) -> Reading:
    """Batches for one client's round.

    Every epoch reads all samples in a new order; the last batch of an epoch may be short, and its row is padded with
    index 0 and mask 0. With `merge_last` (models with BatchNorm) a last batch of one sample joins the batch before it.
    """
    passes = plan.epochs if epochs is None else epochs
    size = min(plan.batch_size or samples, samples)
    if samples == 0 or (passes == 0 and plan.steps is None):
        return Reading(np.zeros((0, 1), np.int64), np.zeros((0, 1), np.float32))
    last = samples % size
    joined = merge_last and last == 1 and samples > size
    steps, width = samples // size + (1 if last and not joined else 0), size + int(joined)
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


def client_reading(job: Job, task: Task, client: int, samples: int) -> Reading:
    """The reading of one client in one round: a function of (seed, round, client) only."""
    rng = seeds.rng(job.seed, "order", job.round, client)
    order = reading(
        job.program.plan(), samples, rng, epochs=job.epochs.get(client), merge_last=task.normalises
    )
    return order if job.limit is None else Reading(order.index[: job.limit], order.mask[: job.limit])


def step_keys(job: Job, clients: Sequence[int], steps: int) -> Tensor:
    """Random streams of the steps of clients: int64 [clients, steps]."""
    own = torch.tensor([seeds.address(job.seed, "step", job.round, client) for client in clients])
    return seeds.fold(own.unsqueeze(1), torch.arange(steps).unsqueeze(0))


def whole_keys(job: Job, clients: Sequence[int]) -> Tensor:
    """Random streams of `begin` and `finish` of clients: int64 [clients]."""
    return torch.tensor([seeds.address(job.seed, "whole", job.round, client) for client in clients])


def whole(samples: Samples | None, key: Tensor, device: torch.device) -> Batch | None:
    """A split as one unpadded batch."""
    if samples is None or samples.inputs.shape[0] == 0:
        return None
    inputs, targets = samples.inputs.to(device), samples.targets.to(device)
    return Batch(inputs, targets, torch.ones(len(inputs), device=device), key.to(device))


def client_data(data: FederatedData, client: int, job: Job, device: torch.device) -> ClientData:
    """What `begin` and `finish` of one client see."""
    if not job.program.reads:
        return ClientData(torch.tensor(float(data.size(client)), device=device))
    key = whole_keys(job, [client])[0]
    splits = {split: whole(data.samples(client, split), key, device) for split in job.program.reads}
    return ClientData(torch.tensor(float(data.size(client)), device=device), **splits)


# --- what comes back ------------------------------------------------------------------------------------------------


def settle(
    client: int,
    reply: Reply,
    memory: Record,
    job: Job,
    reduction: Reduction,
    memories: Memories,
    begun: float,
) -> Outcome:
    """Screen one reply; if it is sound, add it to the reduction and keep the client's memory."""
    reason = screen(reply, job.form(client))
    sample = None
    if reason is None:
        reduction.add(client, reply)
        sample = probe(reply.values, job.cohort)
        if memory:
            memories.put(client, memory)
    metrics = {name: float(value) for name, value in reply.metrics.items()}
    nbytes, ended = payload_bytes(reply.values), time.perf_counter()
    return Outcome(client, float(reply.weight), metrics, nbytes, reason, begun, ended, sample)


def payload_bytes(values: Record) -> int:
    """Bytes that a client uploads with these values."""
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves(values) if isinstance(leaf, Tensor))


# --- the machine ----------------------------------------------------------------------------------------------------


class threads:
    """Set torch's intra-op threads inside a block. With torch's own default, a loaded machine can be 20x slower."""

    def __init__(self, count: int) -> None:
        self.count = max(1, count)

    def __enter__(self) -> None:
        self.before = torch.get_num_threads()
        torch.set_num_threads(self.count)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self.before)


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def warm_up() -> Iterator[None]:
    """Beside the work in the block, do the second of imports that tracing and function transforms need.

    The block must not use torch.func itself: two threads in these imports at once can meet a half-made module.
    """
    thread = threading.Thread(target=importlib.import_module, args=("torch._dynamo",), daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def chunks(count: int, most: int = 64) -> Iterator[range]:
    """Cut `count` replies into at most `most` runs. The cut depends on nothing else, and so does the order of sums."""
    length = max(1, -(-count // most))
    for start in range(0, count, length):
        yield range(start, min(start + length, count))
