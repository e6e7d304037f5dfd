"""Choosing an engine: a short trial of each that could win, and a sentence that says what won and why.

Trials cost time too, most of it for capturing steps. What a capture will cost is known from the number of operations
in a step; one is made only where the rounds to come are long enough for it.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, ClassVar

import torch

from atoll.contract import Job, Memories, Outcome, Reducer
from atoll.data import FederatedData
from atoll.engines.batched import Batched
from atoll.engines.engine import Engine
from atoll.engines.forked import Processes
from atoll.engines.loop import Loop
from atoll.engines.reading import the_order
from atoll.engines.sequential import Sequential
from atoll.engines.steps import Steps
from atoll.engines.trace import Watch
from atoll.errors import EngineError
from atoll.machine import cores, threads
from atoll.task import Task
from atoll.tensors import Record
from atoll.words import duration_text

__all__ = ["Auto"]

_LENGTHS = (2, 8)  # steps a client takes in a trial
_CAPTURE = 1.5e-3  # seconds that capturing takes, for each operation of a step
_TOGETHER = 1.0  # capturing a step of many clients, in captures of one client's: measured are 0.75 to 0.9
_TINY = 6e-3  # seconds of a client's round below which batching nearly always wins: its captures are not lost
_SHARE = 0.1  # of the rounds to come, that may be spent on choosing


class Auto(Engine):
    """Tries the engines on the first round's work for a moment, then keeps the fastest.

    Args:
        rounds: how many the run has.
    """

    name: ClassVar[str] = "auto"

    def __init__(
        self,
        task: Task,
        data: FederatedData,
        device: torch.device,
        workers: int | None = None,
        rounds: int = 1,
    ) -> None:
        super().__init__(task, data, device)
        self.workers, self.rounds = workers, rounds
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
        left = max(1, self.rounds - job.round + 1)
        loop = Loop(self.task, self.data, self.device)
        plainly, operations = self._time_loop(loop, job)
        before = _CAPTURE * operations
        if left * plainly < before + left * plainly / (2 * workers):
            return loop, f"about {duration_text(plainly)} a round; the rounds are over before a capture pays"
        try:
            processes = Processes(self.task, self.data, self.device, workers=workers)
            alone, capture = self._time_single(job, processes.steps)
            trial = _TOGETHER * capture * self._sizes(job) + 3 * sum(_LENGTHS) * alone / self._steps(job)
            alone /= workers
        except EngineError as error:
            together, problem = self._time_batched(batched, job, None)
            if together is not None:
                return batched, f"processes cannot: {error.message}"
            return loop, f"nothing faster can: {error.message}"
        if self.task.recurrent:  # unrolled in time when batched: never faster on a CPU, and slow to trace
            return processes, f"about {duration_text(alone)} a round; recurrent layers batch badly on a CPU"
        tiny = alone * workers < _TINY * len(job.clients)
        if trial > _SHARE * left * alone and not tiny:
            return (
                processes,
                f"about {duration_text(alone)} a round; trying batched would take about {duration_text(trial)}",
            )
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

    def _time_loop(self, engine: Engine, job: Job) -> tuple[float, int]:
        """Seconds a round as it is written, and operations in a step; the first client stands for all."""
        first = replace(job, clients=list(job.clients)[:1], limit=1)
        with _Operations() as operations:  # type: ignore[no-untyped-call]
            engine.run(first, _Nothing())
        start = time.perf_counter()
        engine.run(replace(first, limit=2), _Nothing())
        steps = self._steps(replace(first, limit=2))
        return (time.perf_counter() - start) / steps * self._steps(job), operations.count

    def _time_single(self, job: Job, steps: Steps) -> tuple[float, float]:
        """Seconds a round, captured, one client at a time on one thread, and seconds that captures took.

        What is captured is left in `steps`.
        """
        runner = Sequential(self.task, self.data, self.device)
        runner.steps = steps
        engine = Loop(self.task, self.data, self.device, runner)
        with threads(1):
            once, step, capture = self._time(engine, replace(job, clients=list(job.clients)[:1]))
        return once * len(job.clients) + step * self._steps(job), capture

    def _sizes(self, job: Job) -> int:
        """How many sizes of stack the batched engine captures, about (see `powers`)."""
        steps = {self._steps(replace(job, clients=[client])) for client in job.clients}
        return 1 if len(steps) == 1 else len(job.clients).bit_length()

    def _time_batched(self, engine: Batched, job: Job, rival: float | None) -> tuple[float | None, str]:
        """Seconds a round, the cohort together; or None and what stands in the way."""
        try:
            once, step, _ = self._time(engine, job, None if rival is None else rival / self._steps(job))
        except EngineError as error:
            return None, error.message
        return once + step * self._steps(job), ""

    def _time(self, engine: Engine, job: Job, rival: float | None = None) -> tuple[float, float, float]:
        """Seconds that a round takes however short it is, seconds a client step, and seconds to get ready.

        From short runs of two lengths.

        Only the first of them is run where it is hopeless beside `rival` (seconds a step).
        """
        spans: list[tuple[int, float]] = []
        ready = 0.0
        for limit in _LENGTHS:
            trial = replace(job, limit=limit)
            start = time.perf_counter()
            engine.run(trial, _Nothing())  # captures the sizes that this length meets
            first, best = time.perf_counter() - start, float("inf")
            for _ in range(2):
                start = time.perf_counter()
                engine.run(trial, _Nothing())
                best = min(best, time.perf_counter() - start)
            spans.append((self._steps(trial), best))
            ready += max(first - best, 0.0)
            if rival is not None and best > 10 * rival * spans[0][0]:
                break
        (few, short), (many, long) = spans[0], spans[-1]
        step = max(long - short, 0.0) / (many - few) if many > few else long / many
        return max(long - step * many, 0.0), step, ready

    def _steps(self, job: Job) -> int:
        plan = job.program.plan()
        counted = [
            len(the_order(job.order(client), plan, self.task, self.data.size(client)).index)
            for client in job.clients
        ]
        return max(1, sum(counted))


class _Operations(Watch):  # type: ignore[no-untyped-call]
    """Counts torch's operations."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


class _Nothing:
    """Memories that forget."""

    def get(self, client: int) -> Record | None:
        return None

    def put(self, client: int, memory: Record) -> None:
        pass
