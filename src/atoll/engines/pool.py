"""Runs of clients on workers: the schedule, whoever the workers are.

A cohort is cut into runs of clients that do not depend on the number of workers (`chunks`); each worker sums the
replies of a run; the sums are merged in order. The result is the same to the bit with one worker and with twenty.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from atoll.contract import Job, Memories, Outcome, Reducer, chunks
from atoll.data import FederatedData
from atoll.engines.engine import Engine
from atoll.machine import threads
from atoll.task import Task
from atoll.tensors import Record

__all__ = ["AHEAD", "Crew", "Done", "Lost", "Pool"]

AHEAD = 2
"""Runs of clients a worker holds at a time: one in work, one waiting."""


@dataclass(frozen=True)
class Done:
    """What a run of clients came to: which worker did which run, and what it gives back."""

    worker: int
    run: int
    part: Reducer
    outcomes: list[Outcome]
    memories: Mapping[int, Record]


class Lost(NamedTuple):
    """Runs of clients that nobody is doing any more: they are to be given again."""

    runs: Sequence[int]


class Crew(ABC):
    """Workers, and the way to them."""

    @abstractmethod
    def open(self, job: Job, padded: bool) -> None:
        """Tell all workers about the round, and whether batches may be padded; hire them first where need be."""

    @abstractmethod
    def free(self) -> Sequence[int]:
        """The workers that may be given a run, each as often as it may; who holds fewest comes first."""

    def pick(self, worker: int, runs: Sequence[Sequence[int]]) -> int:
        """Which of these runs of clients, the next to be done in their order, the worker should have."""
        return 0

    @abstractmethod
    def give(self, worker: int, run: int, clients: Sequence[int], job: Job, memories: Memories) -> None:
        """Hand a run of clients, with what is only theirs, to a worker that holds fewer than `AHEAD`."""

    @abstractmethod
    def done(self, job: Job) -> Iterable[Done | Lost]:
        """Wait until some runs are done, or lost, and give them.

        Raises RunError where a worker failed, and nobody is there in its place; all are let go then.
        """

    @abstractmethod
    def close(self) -> None:
        """Let all workers go."""


class Pool(Engine):
    """Gives runs of clients to the workers of a crew as they get free."""

    def __init__(self, task: Task, data: FederatedData, device: torch.device, crew: Crew) -> None:
        super().__init__(task, data, device)
        self.crew = crew

    def run(self, job: Job, memories: Memories) -> tuple[Reducer, list[Outcome]]:
        runs = [[job.clients[at] for at in run] for run in chunks(len(job.clients))]
        todo = list(range(len(runs)))
        arrived: dict[int, Reducer] = {}
        outcomes: list[list[Outcome]] = [[] for _ in runs]
        total, merged = job.reducer(), 0

        def give() -> None:
            for worker in self.crew.free():
                if not todo:
                    break
                number = todo.pop(self.crew.pick(worker, [runs[number] for number in todo]))
                self.crew.give(worker, number, runs[number], job, memories)

        with threads(1):  # the workers have the cores: others would wait for them, and awake
            padded = not self.padding.seen(job, memories)
            self.crew.open(job, padded)
            give()
            while merged < len(runs):
                for done in self.crew.done(job):
                    if isinstance(done, Lost):
                        todo = sorted([*todo, *done.runs])
                    else:
                        arrived[done.run], outcomes[done.run] = done.part, done.outcomes
                        for client, memory in done.memories.items():
                            memories.put(client, memory)
                    give()
                while merged in arrived:
                    total.merge(arrived.pop(merged))
                    merged += 1
        return total, [outcome for run in outcomes for outcome in run]

    def close(self) -> None:
        self.crew.close()
