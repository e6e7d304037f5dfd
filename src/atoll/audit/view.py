"""What the server sees of one client: its reply as it is sent, behind masks where the sum is secure."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from atoll.channel import Chain
from atoll.contract import Channel, Job, inmost
from atoll.data import FederatedData, Samples
from atoll.engines.client import Client
from atoll.federation import Federation
from atoll.machine import threads
from atoll.rounds.cohort import Cohort
from atoll.rounds.memories import MemoryStore
from atoll.rounds.round import ServerRound
from atoll.task import Task, architecture
from atoll.tensors import Record, Tensors, map_leaves

__all__ = ["RING", "Cut", "Seen", "asked", "masked", "seen"]

RING = 1 << 32
"""Masks are whole numbers below it, and what is sent is taken modulo it."""


@dataclass(frozen=True)
class Seen:
    """One client's reply as the server has it.

    `values` are what was sent; `change` is what its field for the client's change (`Method.change`) says to a server
    that takes the numbers at their word, None where the client sends none. `hidden` tells whether masks are on them.
    `start` are the parameters and buffers that the client began with.
    """

    values: Record
    change: Tensors | None
    hidden: bool
    start: tuple[Tensors, Tensors]
    task: Task


class Cut(FederatedData):
    """The same federation, in which every client has the first `count` of its training samples only."""

    def __init__(self, whole: FederatedData, count: int) -> None:
        self.whole, self.count = whole, count
        self.names, self.classes = whole.names, whole.classes
        self.dataset, self.partition = whole.dataset, whole.partition
        self.public, self.weights, self.augmentation = whole.public, whole.weights, whole.augmentation

    @property
    def test_set(self) -> Samples | None:
        return self.whole.test_set

    def size(self, client: int) -> int:
        return min(self.count, self.whole.size(client))

    def samples(self, client: int, split: str = "train") -> Samples | None:
        found = self.whole.samples(client, split)
        return found.take(slice(0, self.count)) if found is not None and split == "train" else found

    def example(self) -> Samples:
        return self.whole.example()

    def choose(self, clients: Sequence[int] | np.ndarray[tuple[int], np.dtype[np.int64]]) -> FederatedData:
        return Cut(self.whole.choose(clients), self.count)


def seen(federation: Federation, client: int, *, protected: bool = True) -> Seen:
    """What the server sees in the first round of a client that has one sample and takes one step: the worst case.

    The client half of the channel is on it. Behind secure aggregation there are masks on it, as the protocol puts them
    there (the simulation adds up without). Central noise is not: the server adds it itself.
    Without `protected` there is no channel.
    """
    simulation = federation.simulation
    channel = simulation.channel if protected else None
    job = asked(federation, client, channel)
    task = simulation.tasks[architecture(client, len(simulation.tasks))]
    order = job.order(client)._replace(limit=1, epochs=None)
    device = simulation.judge.device
    with threads(1):
        answer, _ = Client(task, Cut(federation.data, 1), device).answer(order, job.program, None)
    reply = job.weighed([client], answer.reply)
    inner = inmost(channel)
    chain = inner if isinstance(inner, Chain) else None
    hides = chain is not None and chain.hides
    values = masked(reply.values) if hides else reply.values
    plain = read(values, chain, job) if chain is not None and hides else values
    received = job.work.received(client)
    with threads(1):
        memory = job.program.recall(task, received, None)
    change = federation.method.change
    start = received if "params" in received else memory if channel is None else memory.method
    return Seen(
        values,
        None if change is None else change.of(plain, received, memory if channel is None else memory.method),
        values is not reply.values,
        (start.params, start.get("buffers", Tensors())),
        task,
    )


def asked(federation: Federation, client: int, channel: Channel | None) -> Job:
    """What this client is asked to train in a first round of its own, after whatever new clients are asked."""
    simulation = federation.simulation
    round = ServerRound(
        federation.method, simulation.population, simulation.state, Cohort([client]), 1, federation.seed,
        channel=channel, told=None if channel is None else channel.begin(),
    )  # fmt: skip
    while round.phase == "enrol":
        assert round.job is not None
        round.settle(*simulation.engine.run(round.job, MemoryStore()))
    assert round.job is not None
    return round.job


def masked(values: Record) -> Record:
    """Whole numbers under masks: uniform modulo 2^32, from the operating system, one for each."""

    def under(value: Tensor) -> Tensor:
        drawn = np.frombuffer(os.urandom(4 * value.numel()), np.uint32).astype(np.int64)
        mask = torch.from_numpy(drawn).reshape(value.shape).to(value.device)
        return (value.to(torch.int64) + mask) % RING

    return map_leaves(under, values)  # type: ignore[no-any-return]


def read(values: Record, chain: Chain, job: Job) -> Record:
    """What a server makes of one client's whole numbers, with the server's own half of the channel."""
    told: Mapping[str, object] = job.work.shared.get("channel", Record())
    for each in reversed(chain.transforms):
        if each.sums:
            values = each.release(values, Record(told), job)
    weight = float(values.channel.weight)
    found = {name: part for name, part in values.items() if name != "channel"}
    return Record(map_leaves(lambda v: v / weight, found)) if weight else Record(found)
