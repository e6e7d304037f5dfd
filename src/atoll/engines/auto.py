"""Choosing an engine: a short trial of each that could win, and a sentence that says what won and why."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import ClassVar

import torch

from atoll.contract import Job, Memories, Outcome, Reducer
from atoll.data import FederatedData
from atoll.engines.batched import Batched
from atoll.engines.engine import Engine
from atoll.engines.forked import Processes
from atoll.engines.loop import Loop
from atoll.engines.reading import the_order
from atoll.engines.sequential import Sequential
from atoll.errors import EngineError
from atoll.machine import cores, threads
from atoll.task import Task
from atoll.tensors import Record
from atoll.words import duration_text

__all__ = ["Auto"]

_LENGTHS = (2, 8)  # steps a client takes in a trial


class Auto(Engine):
    """Tries the engines on the first round's work for a moment, then keeps the fastest."""

    name: ClassVar[str] = "auto"

    def __init__(
        self, task: Task, data: FederatedData, device: torch.device, workers: int | None = None
    ) -> None:
        super().__init__(task, data, device)
        self.workers = workers
        self.chosen: Engine | None = None
        self.reason = ""

    def describe(self) -> str:
        return f"{self.chosen.describe()} ({self.reason})" if self.chosen else Loop.name

    def settled(self) -> tuple[str, int | None]:
        return self.chosen.settled() if self.chosen else (self.name, self.workers)

    def run(self, job: Job, memories: Memories) -> tuple[Reducer, list[Outcome]]:
        plan = job.program.plan()
        if self.chosen is None and not plan.epochs and plan.steps is None:  # nothing to time
            return Loop(self.task, self.data, self.device).run(job, memories)
        if self.chosen is None:
            self.chosen, self.reason = self._choose(job)
        return self.chosen.run(job, memories)

    def close(self) -> None:
        if self.chosen is not None:
            self.chosen.close()

    def _choose(self, job: Job) -> tuple[Engine, str]:
        batched = Batched(self.task, self.data, self.device, workers=self.workers)
        batched.resident = self.resident
        if self.device.type != "cpu":
            together, problem = self._time_batched(batched, job, None)
            if together is not None:
                return batched, f"about {duration_text(together)} a round"
            return Loop(self.task, self.data, self.device), f"batched cannot: {problem}"
        workers = min(self.workers or cores(), len(job.clients))
        try:
            processes: Engine = Processes(self.task, self.data, self.device, workers=workers)
            alone = self._time_single(job) / workers
        except EngineError as error:
            together, problem = self._time_batched(batched, job, None)
            if together is not None:
                return batched, f"processes cannot: {error.message}"
            return Loop(self.task, self.data, self.device), f"nothing faster can: {error.message}"
        if self.task.recurrent:  # unrolled in time when batched: never faster on a CPU, and slow to trace
            return processes, f"about {duration_text(alone)} a round; recurrent layers batch badly on a CPU"
        together, problem = self._time_batched(batched, job, alone)
        if together is None:
            return processes, f"about {duration_text(alone)} a round; batched cannot: {problem}"
        short = together < 1e-3 * self._steps(job)
        if short and batched.threads > 1:  # waiting may cost more than threads win
            single = Batched(self.task, self.data, self.device, workers=1)
            single.steps = batched.steps
            slower, _ = self._time_batched(single, job, alone)
            if slower is not None and slower < together:
                batched, together = single, slower
        figures = f"a round: batched about {duration_text(together)}, processes {duration_text(alone)}"
        return (batched if together <= alone else processes), figures

    def _time_single(self, job: Job) -> float:
        """Seconds a round, one client at a time on one thread; the first client stands for all."""
        engine = Loop(self.task, self.data, self.device, Sequential(self.task, self.data, self.device))
        with threads(1):
            once, step = self._time(engine, replace(job, clients=list(job.clients)[:1]))
        return once * len(job.clients) + step * self._steps(job)

    def _time_batched(self, engine: Batched, job: Job, rival: float | None) -> tuple[float | None, str]:
        """Seconds a round, the cohort together; or None and what stands in the way."""
        try:
            once, step = self._time(engine, job, None if rival is None else rival / self._steps(job))
        except EngineError as error:
            return None, error.message
        return once + step * self._steps(job), ""

    def _time(self, engine: Engine, job: Job, rival: float | None = None) -> tuple[float, float]:
        """Seconds that a round takes however short it is, and seconds a client step, from short runs of two lengths.

        Only the first of them is run where it is hopeless beside `rival` (seconds a step).
        """
        spans: list[tuple[int, float]] = []
        for limit in _LENGTHS:
            trial = replace(job, limit=limit)
            engine.run(trial, _Nothing())  # captures the sizes that this length meets
            best = float("inf")
            for _ in range(2):
                start = time.perf_counter()
                engine.run(trial, _Nothing())
                best = min(best, time.perf_counter() - start)
            spans.append((self._steps(trial), best))
            if rival is not None and best > 10 * rival * spans[0][0]:
                break
        (few, short), (many, long) = spans[0], spans[-1]
        step = max(long - short, 0.0) / (many - few) if many > few else long / many
        return max(long - step * many, 0.0), step

    def _steps(self, job: Job) -> int:
        plan = job.program.plan()
        counted = [
            len(the_order(job.order(client), plan, self.task, self.data.size(client)).index)
            for client in job.clients
        ]
        return max(1, sum(counted))


class _Nothing:
    """Memories that forget."""

    def get(self, client: int) -> Record | None:
        return None

    def put(self, client: int, memory: Record) -> None:
        pass
