"""Trials of engines on the work at hand: what a round of each would take, from a few steps of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from atoll.contract import Job
from atoll.data import FederatedData
from atoll.engines.batched import Batched
from atoll.engines.engine import Engine
from atoll.engines.forked import Processes
from atoll.engines.loop import Loop
from atoll.engines.reading import Reading, the_order
from atoll.engines.sequential import Sequential
from atoll.engines.steps import Steps
from atoll.engines.trace import Watch
from atoll.engines.widths import Stretch, stretches
from atoll.errors import EngineError
from atoll.machine import threads
from atoll.task import Task
from atoll.tensors import Record, nbytes

__all__ = ["LENGTHS", "Trials"]

LENGTHS = (2, 8)  # steps a client takes in a trial
_ENOUGH = 0.1  # seconds of a trial that need not be timed twice


class Trials:
    """Times short runs; nothing of them is kept but what was captured."""

    def __init__(self, task: Task, data: FederatedData, device: torch.device) -> None:
        self.task, self.data, self.device = task, data, device

    def loop(self, engine: Engine, job: Job) -> tuple[float, int]:
        """Seconds a round as it is written, and operations in a step; the first client stands for all."""
        first = replace(job, clients=list(job.clients)[:1], limit=1)
        with _Operations() as operations:  # type: ignore[no-untyped-call]
            engine.run(first, _Nothing())
        start = time.perf_counter()
        engine.run(replace(first, limit=2), _Nothing())
        steps = self.steps(replace(first, limit=2))
        return (time.perf_counter() - start) / steps * self.steps(job), operations.count

    def single(self, job: Job, steps: Steps) -> tuple[float, float, float]:
        """Seconds: of a round and of a step, captured, one client at a time on one thread; and what captures took.

        What is captured is left in `steps`.
        """
        runner = Sequential(self.task, self.data, self.device)
        runner.steps = steps
        engine = Loop(self.task, self.data, self.device, runner)
        with threads(1):
            once, step, capture = self._time(engine, replace(job, clients=list(job.clients)[:1]), self.steps)
        return once * len(job.clients) + step * self.steps(job), step, capture

    def crew(self, engine: Processes, job: Job) -> float:
        """Seconds a round, in workers who share cores, caches and a parent: a few clients stand for all.

        The workers are left waiting.
        """
        few = replace(job, clients=list(job.clients)[: 2 * engine.workers])
        once, step, _ = self._time(engine, few, self.steps)
        return once * len(job.clients) / len(few.clients) + step * self.steps(job)

    def trying(self, job: Job, step: float, capture: float) -> float:
        """Seconds that `batched` would take at most, from those of a captured step of one client and of its capture."""
        plans = {limit: self.plan(replace(job, limit=limit)) for limit in LENGTHS}
        captures = len({each[3:] for plan in plans.values() for each in plan})
        rows = {sum((each.end - each.begin) * each.width for each in plan) for plan in plans.values()}
        return captures * capture + sum((3 if few * step < _ENOUGH else 2) * few * step for few in rows)

    def batched(
        self, engine: Batched, job: Job, rival: float | None, step: float | None = None
    ) -> tuple[float | None, str]:
        """Seconds a round, the cohort together; or None and what stands in the way.

        Args:
            rival: seconds a round of another engine.
            step: seconds that a captured step of one client takes. Those of narrower stacks lie between it and the
                step of the whole cohort.
        """
        try:
            once, row, _ = self._time(engine, job, self.rows, rival and rival / self.steps(job))
        except EngineError as error:
            return None, error.message
        widest = row * len(job.clients)
        one = widest if step is None else min(step, widest)
        slope = (widest - one) / max(1, len(job.clients) - 1)
        return once + sum((b - a) * (one + slope * (width - 1)) for a, b, _, width, _ in self.plan(job)), ""

    def _time(
        self, engine: Engine, job: Job, amount: Callable[[Job], int], rival: float | None = None
    ) -> tuple[float, float, float]:
        """Seconds that a round takes however short it is, seconds for each of an amount, and seconds to get ready.

        From short runs of two lengths. Only the first of them is run where it is hopeless beside `rival` (seconds a
        step).
        """
        best: dict[int, float] = {}
        ready = 0.0
        trials = {amount(trial): trial for trial in (replace(job, limit=limit) for limit in LENGTHS)}
        for count, trial in trials.items():
            start = time.perf_counter()
            engine.run(trial, _Nothing())  # captures the sizes that this length meets
            ready += time.perf_counter() - start
            start = time.perf_counter()
            engine.run(trial, _Nothing())
            best[count] = time.perf_counter() - start
            ready -= best[count]
            if rival is not None and best[count] > 10 * rival * count:
                break
        for count in best:  # again a little later: what slows a machine down comes and goes
            if best[count] < _ENOUGH:
                start = time.perf_counter()
                engine.run(trials[count], _Nothing())
                best[count] = min(best[count], time.perf_counter() - start)
        few, many = min(best), max(best)
        short, long = best[few], best[many]
        each = max(long - short, 0.0) / (many - few) if many > few else long / many
        return max(long - each * many, 0.0), each, max(ready, 0.0)

    def steps(self, job: Job) -> int:
        """Steps of all clients."""
        return max(1, sum(len(read.index) for read in self.orders(job)))

    def rows(self, job: Job) -> int:
        """The same, with those that a batched engine takes for clients that are done."""
        return max(1, sum((end - begin) * width for begin, end, _, width, _ in self.plan(job)))

    def plan(self, job: Job) -> list[Stretch]:
        """How wide a stack of the cohort is at each step, about."""
        orders = sorted(self.orders(job), key=lambda read: -len(read.index))
        counts = [len(read.index) for read in orders]
        if not counts[0]:
            return []
        width = max(read.index.shape[1] for read in orders)
        full = np.zeros((counts[0], len(orders)), np.bool_)
        for at, read in enumerate(orders):
            full[: counts[at], at] = (read.mask > 0).all(1) & (read.mask.shape[1] == width)
        return stretches(counts, full, nbytes(job.work.received(job.clients[0])) // 4)

    def widths(self, job: Job) -> int:
        """How many steps are captured for that."""
        return len({each[3:] for each in self.plan(job)})

    def orders(self, job: Job) -> list[Reading]:
        plan = job.program.plan()
        return [the_order(job.order(k), plan, self.task, self.data) for k in job.clients]


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
