"""Choosing an engine: a short trial of each that could win, and a sentence that says what won and why."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import ClassVar

import torch

from atoll.data import FederatedData
from atoll.engines.base import Engine, Job, Memories, Outcome, client_reading, cores, threads
from atoll.engines.batched import Batched
from atoll.engines.loop import Loop
from atoll.engines.processes import Processes
from atoll.engines.steps import Sequential
from atoll.errors import EngineError
from atoll.method import Replies
from atoll.task import Task
from atoll.tensors import Record

__all__ = ["Auto"]


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

    def run(self, job: Job, memories: Memories) -> tuple[Replies | None, list[Outcome]]:
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
        if self.device.type != "cpu":
            together, problem = self._time_batched(batched, job, None)
            if together is not None:
                return batched, f"{1000 * together:.3g} ms a client step"
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
            return processes, f"{1000 * alone:.3g} ms a client step; recurrent layers batch badly on a CPU"
        together, problem = self._time_batched(batched, job, alone)
        if together is None:
            return processes, f"{1000 * alone:.3g} ms a client step; batched cannot: {problem}"
        if batched.threads > 1 and together < 1e-3:  # small steps may lose more to waiting than threads win
            single = Batched(self.task, self.data, self.device, workers=1)
            single.steps = batched.steps
            slower, _ = self._time_batched(single, job, alone)
            if slower is not None and slower < together:
                batched, together = single, slower
        figures = f"a client step: batched {1000 * together:.3g} ms, processes {1000 * alone:.3g} ms"
        return (batched if together <= alone else processes), figures

    def _time_single(self, job: Job) -> float:
        """Seconds a client step, one client at a time on one thread."""
        engine = Sequential(self.task, self.data, self.device)
        with threads(1):
            return self._time(engine, replace(job, clients=list(job.clients)[:1]))

    def _time_batched(self, engine: Batched, job: Job, rival: float | None) -> tuple[float | None, str]:
        """Seconds a client step, the cohort together; or None and what stands in the way."""
        try:
            return self._time(engine, job, rival), ""
        except EngineError as error:
            return None, error.message

    def _time(self, engine: Engine, job: Job, rival: float | None = None) -> float:
        """The best of a few short runs. Stops early where the first shows that `rival` (seconds a step) is faster."""
        best = float("inf")
        for limit, times in ((2, 1), (8, 2)):
            trial = replace(job, limit=limit)
            engine.run(trial, _Nothing())  # captures the sizes that this length meets
            for _ in range(times):
                start = time.perf_counter()
                engine.run(trial, _Nothing())
                best = min(best, (time.perf_counter() - start) / self._steps(trial))
            if rival is not None and best > 3 * rival:
                break
        return best

    def _steps(self, job: Job) -> int:
        counted = [len(client_reading(job, self.task, c, self.data.size(c)).index) for c in job.clients]
        return max(1, sum(counted))


class _Nothing:
    """Memories that forget."""

    def get(self, client: int) -> Record | None:
        return None

    def put(self, client: int, memory: Record) -> None:
        pass
