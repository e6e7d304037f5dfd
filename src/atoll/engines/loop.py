"""The readable twin: one client after another, one step after another, nothing captured, nothing batched."""

from __future__ import annotations

import time
from typing import ClassVar

import torch

from atoll.engines.base import (
    Engine,
    Job,
    Memories,
    Outcome,
    chunks,
    client_data,
    client_reading,
    settle,
    step_keys,
    threads,
)
from atoll.method import ClientData, Reduction, Replies, Reply
from atoll.task import Batch
from atoll.tensors import Record, to_device

__all__ = ["Loop"]


class Loop(Engine):
    """Runs the client half as it is written."""

    name: ClassVar[str] = "loop"

    def run(self, job: Job, memories: Memories) -> tuple[Replies | None, list[Outcome]]:
        reduction = Reduction(job.reduction)
        outcomes = []
        with threads(1):
            for run in chunks(len(job.clients)):
                part = Reduction(job.reduction)
                for client in (job.clients[at] for at in run):
                    begun = time.perf_counter()
                    reply, memory = self.client(job, client, memories.get(client))
                    outcomes.append(settle(client, reply, memory, job, part, memories, begun))
                reduction.merge(part)
        return reduction.result(), outcomes

    @torch.no_grad()
    def client(self, job: Job, client: int, memory: Record | None) -> tuple[Reply, Record]:
        """The whole round of one client."""
        data = client_data(self.data, client, job, self.device)
        return job.program.finish(self.task, self.local(job, client, memory, data), data)

    @torch.no_grad()
    def local(self, job: Job, client: int, memory: Record | None, data: ClientData) -> Record:
        """One client's working state after all its steps."""
        program = job.program
        received = to_device(job.work.received(client), self.device)
        memory = program.remember(self.task, received) if memory is None else to_device(memory, self.device)
        return self.train(job, program.begin(self.task, received, memory, data), client)

    def train(self, job: Job, local: Record, client: int) -> Record:
        """All steps of one client's round."""
        order = client_reading(job, self.task, client, self.data.size(client))
        keys = step_keys(job, [client], len(order.index))[0]
        train = self.data.samples(client) if len(order.index) else None
        for index, mask, key in zip(order.index, order.mask, keys, strict=True):
            assert train is not None
            rows = torch.from_numpy(index[mask > 0])
            batch = Batch(train.inputs[rows], train.targets[rows], torch.ones(len(rows)), key)
            local = job.program.step(self.task, local, to_device(batch, self.device))
        return local
