"""Choosing an engine: a short trial of each that could win, and a sentence that says what won and why.

Trials cost time too, most of it for capturing steps. What a capture will cost is known from the number of operations
in a step; one is made only where the rounds to come are long enough for it. What a trial has found is remembered
(`engines/remembered.py`), unless others used the cores meanwhile.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from atoll import __version__
from atoll.contract import Job, Memories, Outcome, Reducer
from atoll.data import FederatedData
from atoll.engines.batched import Batched
from atoll.engines.engine import Engine
from atoll.engines.forked import Processes
from atoll.engines.loop import Loop
from atoll.engines.reading import Reading, the_order
from atoll.engines.remembered import Found, forget, key, recall, remember
from atoll.engines.sequential import Sequential
from atoll.engines.steps import Steps, form
from atoll.engines.widths import Stretch, stretches
from atoll.errors import EngineError
from atoll.machine import Neighbours, cores, threads
from atoll.task import Task
from atoll.tensors import Record
from atoll.words import duration_text

__all__ = ["Auto", "decide"]

_OVER = "the rounds are over before a capture pays"

_LENGTHS = (2, 8)  # steps a client takes in a trial
_CAPTURE = 1.5e-3  # seconds that capturing takes, for each operation of a step
_LIBRARIES = 1.5  # seconds that it takes to import what captures need
_TOGETHER = 1.0  # capturing a step of many clients, in captures of one client's: measured are 0.75 to 0.9
_TINY = 6e-3  # seconds of a client's round below which batching nearly always wins: its captures are not lost
_SHARE, _TINY_SHARE = 0.1, 0.5  # of the rounds to come, that may be spent on choosing
_ROUNDS, _LONG = 10, 0.01  # as written, that may: so many, or this share of a long run
_WON = 0.7  # of a round in processes, that batched wins at best
_ENOUGH = 0.1  # seconds of a trial that need not be timed twice
_SLOW = 2.0  # times what was remembered, from which on it is forgotten


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
        self._recalled: tuple[str, float] | None = None  # under which name, and what it said a round takes
        self._took: list[float] = []

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
        if self._recalled is None:
            return self.chosen.run(job, memories)
        return self._watched(self.chosen, job, memories, *self._recalled)

    def _watched(
        self, engine: Engine, job: Job, memories: Memories, name: str, said: float
    ) -> tuple[Reducer, list[Outcome]]:
        """A round of an engine that was remembered, and whether that was right."""
        start = time.perf_counter()
        try:
            result = engine.run(job, memories)
        except EngineError:
            forget(name)
            raise
        self._took.append(time.perf_counter() - start)
        if len(self._took) == 3:  # the first have captures among them
            self._recalled = None
            if min(self._took) > _SLOW * said:
                forget(name)
        return result

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
        name = key(__version__, torch.__version__, cores(), workers, *self._work(job))
        known = recall(name)
        if known is not None:
            return self._known(known, name, left, workers)
        neighbours = Neighbours()
        plainly, operations = self._time_loop(loop, job)
        before = _CAPTURE * operations + (0 if "torch._dynamo" in sys.modules else _LIBRARIES)
        if left * plainly < before + left * plainly / (2 * workers):
            return loop, f"about {duration_text(plainly)} a round; {_OVER}"
        try:
            processes = Processes(self.task, self.data, self.device, workers=workers)
            alone, step, capture = self._time_single(job, processes.steps)
            captures = self._widths(job)
            tried = self._widths(replace(job, limit=max(_LENGTHS)))
            trial = _TOGETHER * capture * tried + 3 * sum(_LENGTHS) * step * len(job.clients)
            alone /= workers
        except EngineError as error:
            together, problem = self._time_batched(batched, job, None)
            if together is not None:
                return batched, f"processes cannot: {error.message}"
            return loop, f"nothing faster can: {error.message}"
        if self.task.recurrent:  # unrolled in time when batched: never faster on a CPU, and slow to trace
            return processes, f"about {duration_text(alone)} a round; recurrent layers batch badly on a CPU"
        tiny = alone * workers < _TINY * len(job.clients)
        share = (_TINY_SHARE if tiny else _SHARE) * left * alone
        most = min(share, max(_ROUNDS, _LONG * left) * plainly)
        if trial > most or captures * capture > _WON * left * alone:
            return (
                processes,
                f"about {duration_text(alone)} a round; trying batched would take about {duration_text(trial)}",
            )
        together, problem = self._time_batched(batched, job, alone, step)
        if together is None:
            return processes, f"about {duration_text(alone)} a round; batched cannot: {problem}"
        short = together < 1e-3 * self._steps(job)
        if short and batched.threads > 1:  # waiting may cost more than threads win
            single = Batched(self.task, self.data, self.device, workers=1)
            single.steps = batched.steps
            slower, _ = self._time_batched(single, job, alone, step)
            if slower is not None and slower < together:
                batched, together = single, slower
        found = Found(plainly, alone, together, batched.threads, capture, captures)
        others = neighbours.others()
        if others is not None and others < neighbours.BUSY:
            remember(name, found)
        chosen, figures = decide(found, left, captured=batched.captures)
        return (batched if chosen == Batched.name else processes), f"a round: {figures}"

    def _known(self, found: Found, name: str, left: int, workers: int) -> tuple[Engine, str]:
        """The choice that follows from what was found before."""
        chosen, figures = decide(found, left)
        if chosen == Loop.name:
            about = duration_text(found.loop)
            return Loop(self.task, self.data, self.device), f"remembered: about {about} a round; {_OVER}"
        reason = f"remembered: {figures} a round"
        if chosen == Processes.name:
            self._recalled = name, found.alone
            return Processes(self.task, self.data, self.device, workers=workers), reason
        self._recalled = name, found.together
        batched = Batched(self.task, self.data, self.device, workers=found.threads)
        batched.resident = self.resident
        return batched, reason

    def _work(self, job: Job) -> tuple[Any, ...]:
        """What is the same in runs whose rounds take as long: forms of model and data, method, the cohort's steps."""
        example, module = self.data.example(), self.task.module
        steps = [self._steps(replace(job, clients=[client])) for client in job.clients]
        sizes = [len(steps), sum(steps), max(steps)]
        settings = vars(job.method).items()  # of numbers that are not whole it matters whether they are 0
        method = [
            (each, bool(value) if isinstance(value, float) else repr(value)) for each, value in settings
        ]
        return (
            str(module), *(_code(type(part).forward) for part in module.modules()), self.task.loss_name,
            _code(self.task.loss_function), form(job.work.shared), form(example.inputs), form(example.targets),
            f"{type(job.method).__module__}.{type(job.method).__qualname__}", method, job.channel is None,
            job.work.program, job.program.plan(), [round(2 * math.log2(size)) for size in sizes],
        )  # fmt: skip

    def _time_loop(self, engine: Engine, job: Job) -> tuple[float, int]:
        """Seconds a round as it is written, and operations in a step; the first client stands for all."""
        first = replace(job, clients=list(job.clients)[:1], limit=1)
        with _Operations() as operations:  # type: ignore[no-untyped-call]
            engine.run(first, _Nothing())
        start = time.perf_counter()
        engine.run(replace(first, limit=2), _Nothing())
        steps = self._steps(replace(first, limit=2))
        return (time.perf_counter() - start) / steps * self._steps(job), operations.count

    def _time_single(self, job: Job, steps: Steps) -> tuple[float, float, float]:
        """Seconds: of a round and of a step, captured, one client at a time on one thread; and what captures took.

        What is captured is left in `steps`.
        """
        runner = Sequential(self.task, self.data, self.device)
        runner.steps = steps
        engine = Loop(self.task, self.data, self.device, runner)
        with threads(1):
            once, step, capture = self._time(engine, replace(job, clients=list(job.clients)[:1]), self._steps)
        return once * len(job.clients) + step * self._steps(job), step, capture

    def _time_batched(
        self, engine: Batched, job: Job, rival: float | None, step: float | None = None
    ) -> tuple[float | None, str]:
        """Seconds a round, the cohort together; or None and what stands in the way.

        Args:
            rival: seconds a round of another engine.
            step: seconds that a captured step of one client takes. Those of narrower stacks lie between it and the
                step of the whole cohort.
        """
        try:
            once, row, _ = self._time(engine, job, self._rows, rival and rival / self._steps(job))
        except EngineError as error:
            return None, error.message
        widest = row * len(job.clients)
        one = widest if step is None else min(step, widest)
        slope = (widest - one) / max(1, len(job.clients) - 1)
        return once + sum((b - a) * (one + slope * (width - 1)) for a, b, _, width, _ in self._plan(job)), ""

    def _time(
        self, engine: Engine, job: Job, amount: Callable[[Job], int], rival: float | None = None
    ) -> tuple[float, float, float]:
        """Seconds that a round takes however short it is, seconds for each of an amount, and seconds to get ready.

        From short runs of two lengths. Only the first of them is run where it is hopeless beside `rival` (seconds a
        step).
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
                if best > _ENOUGH:
                    break
            spans.append((amount(trial), best))
            ready += max(first - best, 0.0)
            if rival is not None and best > 10 * rival * spans[0][0]:
                break
        (few, short), (many, long) = spans[0], spans[-1]
        each = max(long - short, 0.0) / (many - few) if many > few else long / many
        return max(long - each * many, 0.0), each, ready

    def _steps(self, job: Job) -> int:
        """Steps of all clients."""
        return max(1, sum(len(read.index) for read in self._orders(job)))

    def _rows(self, job: Job) -> int:
        """The same, with those that a batched engine takes for clients that are done."""
        return max(1, sum((end - begin) * width for begin, end, _, width, _ in self._plan(job)))

    def _plan(self, job: Job) -> list[Stretch]:
        """How wide a stack of the cohort is at each step, about."""
        orders = sorted(self._orders(job), key=lambda read: -len(read.index))
        counts = [len(read.index) for read in orders]
        if not counts[0]:
            return []
        width = max(read.index.shape[1] for read in orders)
        full = np.zeros((counts[0], len(orders)), np.bool_)
        for at, read in enumerate(orders):
            full[: counts[at], at] = (read.mask > 0).all(1) & (read.mask.shape[1] == width)
        return stretches(counts, full, job.work.nbytes(job.clients[0]) // 4)

    def _widths(self, job: Job) -> int:
        """How many steps are captured for that."""
        return len({each[3:] for each in self._plan(job)})

    def _orders(self, job: Job) -> list[Reading]:
        plan = job.program.plan()
        return [the_order(job.order(k), plan, self.task, self.data.size(k)) for k in job.clients]


def decide(found: Found, left: int, captured: int | None = None) -> tuple[str, str]:
    """The engine that so many rounds take least time in, captures included, and a sentence with the figures.

    Args:
        captured: steps that batched has captured already, beside one of a client alone; None: nothing is captured.
    """
    missing = found.captures - (captured or 0)
    together = left * found.together + max(0, missing) * found.capture
    alone = left * found.alone + (found.capture if captured is None else 0.0)
    if captured is None and left * found.loop < min(together, alone):
        return Loop.name, ""
    figures = f"batched about {duration_text(found.together)}, processes {duration_text(found.alone)}"
    return (Batched.name if together <= alone else Processes.name), figures


def _code(function: Any) -> str:
    """What tells a function from another of the same name."""
    code = getattr(function, "__code__", None)
    return f"{getattr(function, '__qualname__', '')} {code and (code.co_code.hex(), code.co_names)}"


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
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
