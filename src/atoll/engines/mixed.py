"""Clients of several architectures: an engine for each, and their replies put together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar

import torch

from atoll.engines.base import Engine, Job, Memories, Outcome
from atoll.method import Reduction, Replies, Reply
from atoll.task import Task
from atoll.tensors import Record

__all__ = ["Mixed"]


class Mixed(Engine):
    """Gives every client to the engine of its architecture, client k to that of number k modulo their number.

    Args:
        make: the engine of that name (None: as wished) and with that many workers for a task.

    All run on the engine that the first one settles on. Replies that are averaged must have one form for all.
    """

    name: ClassVar[str] = "mixed"

    def __init__(self, tasks: Sequence[Task], make: Callable[[Task, str | None, int | None], Engine]) -> None:
        first = make(tasks[0], None, None)
        super().__init__(first.task, first.data, first.device)
        self.tasks, self.make = tasks, make
        self.engines = [first]
        self.chosen = first.settled()

    def describe(self) -> str:
        return f"{self.engines[0].describe()}, {len(self.tasks)} architectures"

    def settled(self) -> tuple[str, int | None]:
        return self.engines[0].settled()

    def close(self) -> None:
        for engine in self.engines:
            engine.close()

    def run(self, job: Job, memories: Memories) -> tuple[Replies | None, list[Outcome]]:
        parts: list[Replies] = []
        outcomes: list[Outcome] = []
        for number in range(len(self.tasks)):
            clients = [client for client in job.clients if client % len(self.tasks) == number]
            if clients:
                replies, found = self._engine(number).run(replace(job, clients=clients), memories)
                parts += [] if replies is None else [replies]
                outcomes += found
        outcomes.sort(key=lambda outcome: outcome.client)
        return (_joined(parts, job) if parts else None), outcomes

    def _engine(self, number: int) -> Engine:
        if number == 0:
            return self.engines[0]
        if len(self.engines) == 1 or self.chosen != self.settled():
            for engine in self.engines[1:]:
                engine.close()
            self.chosen = self.settled()
            self.engines[1:] = [self.make(task, *self.chosen) for task in self.tasks[1:]]
        return self.engines[number]


def _joined(parts: Sequence[Replies], job: Job) -> Replies:
    """All replies as one, in the order of clients."""
    clients = sorted(client for part in parts for client in part.clients)
    weight = sum(part.weight for part in parts)
    if job.reduction == "each":
        each = {c: r for part in parts for c, r in zip(part.clients, part.each, strict=True)}
        return Replies(clients, weight, parts[0].mean, [each[client] for client in clients])
    reduction = Reduction("mean")
    for part in parts:
        reduction.add(
            part.clients[0], Reply(part.mean, torch.tensor(part.weight, dtype=torch.float64), Record())
        )
    reduced = reduction.result()
    assert reduced is not None
    return Replies(clients, weight, reduced.mean, [])
