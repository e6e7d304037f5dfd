"""Choosing an engine: a short trial of each that could win, and a sentence that says what won and why.

Trials cost time too, most of it for capturing steps. What a capture will cost is known from the number of operations
in a step; one is made only where the rounds to come are long enough for it. What a trial has found is remembered
(`engines/remembered.py`), unless others used the cores meanwhile. Rounds that turn out slow are a reason to try the
other engine after all (`engines/second.py`).
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any, ClassVar

import torch

from atoll import __version__
from atoll.contract import Job, Memories, Outcome, Reducer
from atoll.data import FederatedData
from atoll.engines.batched import Batched
from atoll.engines.engine import Engine
from atoll.engines.forked import Processes
from atoll.engines.loop import Loop
from atoll.engines.remembered import Found, forget, key, recall, remember
from atoll.engines.second import Contender, Second, amount
from atoll.engines.steps import form
from atoll.engines.trials import Trials
from atoll.errors import EngineError
from atoll.machine import Neighbours, cores
from atoll.task import Task
from atoll.words import duration_text

__all__ = ["Auto", "decide"]

_OVER = "the rounds are over before a capture pays"

_CAPTURE = 0.8e-3  # seconds that capturing takes, for each operation of a step
_TINY, _QUICK = 6e-3, 6e-4  # seconds of a client's round, or step, below which batching nearly always wins
_SHARE, _TINY_SHARE = 0.1, 0.5  # of the rounds to come, that may be spent on choosing
_ROUNDS, _LONG = 10, 0.01  # as written, that may: so many, or this share of a long run
_WON = 0.7  # of a round in processes, that batched wins at best
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
        self.trials = Trials(task, data, device)
        self.chosen: Engine | None = None
        self.reason = ""
        self.second: Second | None = None
        self._found: tuple[str, Found] | None = None  # of the two engines, and under which name
        self._steps = 0  # of all clients in the round that was tried
        self._neighbours = Neighbours()
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
            return self._play(self.chosen, job, memories)
        return self._watched(self.chosen, job, memories, *self._recalled)

    def _play(self, engine: Engine, job: Job, memories: Memories) -> tuple[Reducer, list[Outcome]]:
        """A round, after which another engine may be the one."""
        second = self.second
        if second is None:
            return engine.run(job, memories)
        result = second.run(job, memories)
        self.chosen, self.reason = second.now.engine, second.reason or self.reason
        if second.state == "over":
            self.second = None
            if second.other.took and self._found is not None:
                self._seen(second, *self._found)
        return result

    def _seen(self, second: Second, name: str, found: Found) -> None:
        """Remember what rounds of both engines took."""
        others = self._neighbours.others()
        if others is not None and others < Neighbours.BUSY:
            took = second.figures(self._steps)
            remember(name, replace(found, alone=took[Processes.name], together=took[Batched.name]))

    def _watched(
        self, engine: Engine, job: Job, memories: Memories, name: str, said: float
    ) -> tuple[Reducer, list[Outcome]]:
        """A round of an engine that was remembered, and whether that was right."""
        start = time.perf_counter()
        try:
            result = self._play(engine, job, memories)
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
        if self.second is not None:
            self.second.close()
        elif self.chosen is not None:
            self.chosen.close()

    def _choose(self, job: Job) -> tuple[Engine, str]:
        batched = Batched(self.task, self.data, self.device, workers=self.workers)
        batched.resident = self.resident
        if self.device.type != "cpu":
            together, problem = self.trials.batched(batched, job, None)
            if together is not None:
                return batched, f"about {duration_text(together)} a round"
            return Loop(self.task, self.data, self.device), f"batched cannot: {problem}"
        workers = min(self.workers or cores(), len(job.clients))
        left = max(1, self.rounds - job.round + 1)
        loop = Loop(self.task, self.data, self.device)
        name = key(__version__, torch.__version__, cores(), workers, *self._work(job))
        known = recall(name)
        if known is not None:
            return self._known(known, name, left, workers, job)
        neighbours = Neighbours()
        plainly, operations = self.trials.loop(loop, job)
        before = _CAPTURE * operations
        if left * plainly < before + left * plainly / (2 * workers):
            return loop, f"about {duration_text(plainly)} a round; {_OVER}"
        try:
            processes = Processes(self.task, self.data, self.device, workers=workers)
            alone, step, capture = self.trials.single(job, processes.steps)
            captures = self.trials.widths(job)
            trial = self.trials.trying(job, step, capture)
            alone /= workers  # at best: they are tried only if that wins
        except EngineError as error:
            together, problem = self.trials.batched(batched, job, None)
            if together is not None:
                return batched, f"processes cannot: {error.message}"
            return loop, f"nothing faster can: {error.message}"
        if self.task.recurrent:  # unrolled in time when batched: never faster on a CPU, and slow to trace
            return processes, f"about {duration_text(alone)} a round; recurrent layers batch badly on a CPU"
        tiny = alone * workers < _TINY * len(job.clients) or step < _QUICK
        share = (_TINY_SHARE if tiny else _SHARE) * left * alone
        most = min(share, max(_ROUNDS, _LONG * left) * plainly)
        for doing, takes, worth in (
            ("trying batched", trial, most),
            ("captures of batched", captures * capture, _WON * left * alone),
        ):
            if takes > worth:
                would = f"{doing} would take about {duration_text(takes)}"
                whole = self.trials.rows(job) * step + captures * capture
                self._found = name, Found(plainly, alone, alone, batched.threads, capture, captures)
                self._contest(Contender(processes, None), Contender(batched, None, whole), job)
                return processes, f"at best {duration_text(alone)} a round; {would}"
        together, problem = self.trials.batched(batched, job, alone, step)
        if together is None:
            return processes, f"about {duration_text(alone)} a round; batched cannot: {problem}"
        short = together < 1e-3 * self.trials.steps(job)
        if short and batched.threads > 1:  # waiting may cost more than threads win
            single = Batched(self.task, self.data, self.device, workers=1)
            single.steps = batched.steps
            slower, _ = self.trials.batched(single, job, alone, step)
            if slower is not None and slower < together:
                batched, together = single, slower
        found = Found(plainly, alone, together, batched.threads, capture, captures)
        if decide(found, left, captured=batched.captures)[0] == Processes.name:
            found = replace(found, alone=max(alone, self.trials.crew(processes, job)))
        others = neighbours.others()
        if others is not None and others < neighbours.BUSY:
            remember(name, found)
        chosen, figures = decide(found, left, captured=batched.captures)
        return self._of_two(chosen, batched, processes, found, name, job), f"a round: {figures}"

    def _of_two(
        self, chosen: str, batched: Batched, processes: Processes, found: Found, name: str, job: Job
    ) -> Engine:
        """The chosen one of the two; the other is kept for a second look."""
        steps = amount(job, self.data)
        missing = max(0, found.captures - batched.captures) * found.capture
        together = Contender(batched, found.together / steps, missing)
        alone = Contender(processes, found.alone / steps)
        self._found = name, found
        return self._contest(*((together, alone) if chosen == Batched.name else (alone, together)), job)

    def _contest(self, now: Contender, other: Contender, job: Job) -> Engine:
        other.engine.close()
        self.second = Second(now, other, self.data, job.work.program, self.rounds)
        self._steps = amount(job, self.data)
        return now.engine

    def _known(self, found: Found, name: str, left: int, workers: int, job: Job) -> tuple[Engine, str]:
        """The choice that follows from what was found before."""
        chosen, figures = decide(found, left)
        if chosen == Loop.name:
            about = duration_text(found.loop)
            return Loop(self.task, self.data, self.device), f"remembered: about {about} a round; {_OVER}"
        reason = f"remembered: {figures} a round"
        self._recalled = name, found.alone if chosen == Processes.name else found.together
        processes = Processes(self.task, self.data, self.device, workers=workers)
        batched = Batched(self.task, self.data, self.device, workers=found.threads)
        batched.resident = self.resident
        return self._of_two(chosen, batched, processes, found, name, job), reason

    def _work(self, job: Job) -> tuple[Any, ...]:
        """What is the same in runs whose rounds take as long: forms of model and data, method, the cohort's steps."""
        example, module = self.data.example(), self.task.module
        steps = [len(read.index) for read in self.trials.orders(job)]
        sizes = [len(steps), sum(steps), max(steps)]
        settings = getattr(
            job.method, "__dict__", {}
        ).items()  # of numbers that are not whole it matters whether they are 0
        method = [
            (each, bool(value) if isinstance(value, float) else repr(value)) for each, value in settings
        ]
        return (
            str(module), *(_code(type(part).forward) for part in module.modules()), self.task.loss_text,
            _code(self.task.loss_function), form(job.work.shared), form(example.inputs), form(example.targets),
            f"{type(job.method).__module__}.{type(job.method).__qualname__}", method, job.channel is None,
            job.work.program, job.program.plan(), [round(2 * math.log2(max(size, 1))) for size in sizes],
        )  # fmt: skip


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
