"""Clients of several architectures: an engine for each, and their replies put together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar

from atoll.contract import Job, Memories, Outcome, Reducer
from atoll.engines.engine import Engine
from atoll.task import Task, architecture

__all__ = ["Mixed"]


class Mixed(Engine):
    """Gives every client to the engine of its architecture (see `atoll.task.architecture`).

    Args:
        make: the engine of that name (None: as wished) and with that many workers for a task.

    All run on the engine that the first one settles on. Replies that are averaged must have one form for all.
    """

    name: ClassVar[str] = "mixed"

    def __init__(self, tasks: Sequence[Task], make: Callable[[Task, str | None, int | None], Engine]) -> None:
        first = make(tasks[0], None, None)
        super().__init__(first.task, first.data, first.device)
        self.resident = first.resident
        self.tasks, self.make = tasks, make
        self.engines = [first]
        self.chosen = first.settled()

    def describe(self) -> str:
        return f"{self.engines[0].describe()}, {len(self.tasks)} architectures"

    def settled(self) -> tuple[str, int | None]:
        return self.engines[0].settled()

    def close(self) -> None:
        for engine in reversed(
            self.engines
        ):  # workers that were forked later hold the lines of those before them
            engine.close()

    def run(self, job: Job, memories: Memories) -> tuple[Reducer, list[Outcome]]:
        total = job.reducer()
        outcomes: list[Outcome] = []
        for number in range(len(self.tasks)):
            clients = [k for k in job.clients if architecture(k, len(self.tasks)) == number]
            if clients:
                part, found = self._engine(number).run(replace(job, clients=clients), memories)
                total.merge(part)
                outcomes += found
        outcomes.sort(key=lambda outcome: outcome.client)
        return total, outcomes

    def _engine(self, number: int) -> Engine:
        if number == 0:
            return self.engines[0]
        if len(self.engines) == 1 or self.chosen != self.settled():
            for engine in reversed(self.engines[1:]):
                engine.close()
            self.chosen = self.settled()
            self.engines[1:] = [self.make(task, *self.chosen) for task in self.tasks[1:]]
            for engine in self.engines[1:]:
                engine.resident = self.resident
        return self.engines[number]
