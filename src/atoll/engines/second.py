"""A second look at the choice of an engine: what its rounds really took decides again, once.

A trial is a few steps, at one moment. Now and then it picks the loser, above all where others use the cores. After a
few rounds the fastest of them is held against what the trial said of the other engine; where the other should be
clearly faster it plays a round or two, which count, and the faster of the two stays. If what stays then turns out
slower than what the first one took, the run goes back, and that is final: an engine changes twice at most.
"""

from __future__ import annotations

import time
from typing import Literal

from atoll.contract import Job, Memories, Outcome, Reducer
from atoll.data import FederatedData
from atoll.engines.batched import Batched
from atoll.engines.engine import Engine
from atoll.engines.forked import Forked, Processes
from atoll.errors import AtollError
from atoll.tensors import Record
from atoll.words import duration_text

__all__ = ["Contender", "Second", "amount"]

LOOKS = (3, 8)
"""Rounds of the first engine after which it is looked at."""
LEFT = 10
"""Rounds that must be left for a look: fewer do not pay for a round of a slower engine."""
MARGIN = 0.85
"""What the other must promise, of what rounds take: on two shared cores what a trial says of batched and what rounds
take then differ by up to 12 % in the median, so that less than this is noise."""
SHARE = 0.25
"""Of the rounds to come, that may be spent on an engine of which nothing is known: by what one client's steps take,
which is far above what they take batched."""
_TRIES = 4  # rounds of the other at most, where steps are captured in the first ones
_PROVING = 5  # rounds after which an engine that was changed to is looked at for the last time


class Contender:
    """An engine that could be the fastest.

    Args:
        said: seconds that a round takes, a step of a client, by trial; None where there was none.
        missing: seconds of captures that it still needs, about, and of a round where there was no trial.
    """

    def __init__(self, engine: Engine, said: float | None, missing: float = 0.0) -> None:
        self.engine, self.said, self.missing = engine, said, missing
        self.took: list[float] = []
        """What rounds really took, in the same unit, without those in which something was made ready."""
        self._all: list[float] = []

    def run(self, job: Job, memories: Memories, steps: int) -> tuple[Reducer, list[Outcome]]:
        """A round of so many steps, timed."""
        before, start = _ready(self.engine), time.perf_counter()
        result = self.engine.run(job, memories)
        each = (time.perf_counter() - start) / steps
        self._all.append(each)
        if _ready(self.engine) == before:
            self.took.append(each)
        return result

    @property
    def rounds(self) -> int:
        return len(self._all)

    @property
    def best(self) -> float:
        """The fastest of its rounds."""
        return min(self.took or self._all, default=float("inf"))


class Second:
    """Runs one of two engines, and looks again which.

    Args:
        now: the one that the trials chose.
        rounds: how many the run has.
    """

    def __init__(
        self, now: Contender, other: Contender, data: FederatedData, program: str, rounds: int
    ) -> None:
        self.now, self.other = now, other
        self.data, self.program, self.rounds = data, program, rounds
        self.state: Literal["watching", "trying", "proving", "over"] = "watching"
        self.reason = ""
        """Why it is this engine, once another one was tried."""

    def run(self, job: Job, memories: Memories) -> tuple[Reducer, list[Outcome]]:
        """Run a job on the present engine. Which one runs the next is known when this is done."""
        steps = amount(job, self.data)
        if self.state == "over" or job.work.program != self.program or not steps:
            return self.now.engine.run(job, memories)
        if self.state == "trying":
            aside = _Aside(memories)
            try:
                result = self.now.run(job, aside, steps)
            except (
                AtollError
            ) as error:  # what plays the round without it decides whether it is the job's fault
                self._change("over", f"{self.now.engine.name} cannot: {error.message}")
                return self.now.engine.run(job, memories)
            aside.settle()
        else:
            result = self.now.run(job, memories, steps)
        self._look(self.rounds - job.round, steps)
        return result

    def close(self) -> None:
        self.now.engine.close()
        self.other.engine.close()

    def figures(self, steps: int) -> dict[str, float]:
        """Seconds of a round of so many steps, by engine."""
        return {each.engine.name: each.best * steps for each in (self.now, self.other)}

    def _look(self, left: int, steps: int) -> None:
        now, other = self.now, self.other
        if self.state == "watching":
            if now.rounds in LOOKS and left >= LEFT:
                if self._promising(steps, left):
                    told = "no trial has been made"
                    if other.said is not None:
                        told = f"a trial said {duration_text(other.said * steps)} of this"
                    took = f"{now.engine.name} took {duration_text(now.best * steps)} a round"
                    self._change("trying", f"tried, since {took} and {told}")
            elif now.rounds > max(LOOKS) or left < LEFT:
                self._end()
        elif self.state == "trying":
            close = MARGIN * other.best < now.best < other.best / MARGIN
            if (now.took and (len(now.took) > 1 or not close)) or now.rounds >= _TRIES:
                if now.best < other.best:
                    self.state, self.reason = "proving", self._compared(steps)
                else:
                    self._change("over", self._compared(steps))
        elif now.rounds >= _PROVING:
            if other.best < MARGIN * now.best and left > 0:
                self._change("over", self._compared(steps))
            else:
                self._end()

    def _promising(self, steps: int, left: int) -> bool:
        """Whether the other engine is worth a round."""
        took, said = self.now.best, self.other.said
        if said is None:
            return self.other.missing < SHARE * took * steps * left
        return said < MARGIN * took and self.other.missing < (took - said) * steps * left

    def _compared(self, steps: int) -> str:
        found = self.figures(steps)
        return "in rounds: " + ", ".join(f"{name} {duration_text(found[name])}" for name in sorted(found))

    def _change(self, state: Literal["trying", "over"], reason: str) -> None:
        self.now, self.other = self.other, self.now
        self.state, self.reason = state, reason
        if state == "over":
            self._end()

    def _end(self) -> None:
        self.state = "over"
        self.other.engine.close()


class _Aside:
    """Memories as they were, and what is put beside them until that counts."""

    def __init__(self, kept: Memories) -> None:
        self.kept, self.put_aside = kept, dict[int, Record]()

    def get(self, client: int) -> Record | None:
        return self.put_aside[client] if client in self.put_aside else self.kept.get(client)

    def put(self, client: int, memory: Record) -> None:
        self.put_aside[client] = memory

    def settle(self) -> None:
        for client, memory in self.put_aside.items():
            self.kept.put(client, memory)


def amount(job: Job, data: FederatedData) -> int:
    """Steps that a job's clients take in all, as planned."""
    plan, total = job.program.plan(), 0
    for client in job.clients:
        samples, passes = data.size(client), job.passes(client)
        steps = plan.steps
        if steps is None:
            size = min(plan.batch_size or samples, samples)
            steps = (plan.epochs if passes is None else passes) * -(-samples // size) if samples else 0
        limit = job.limits.get(client)
        total += steps if limit is None else min(steps, limit)
    return total


def _ready(engine: Engine) -> int:
    """What has been made ready: captures, workers."""
    if isinstance(engine, Batched):
        return engine.captures
    crew = engine.crew if isinstance(engine, Processes) else None
    return len(crew.workers) if isinstance(crew, Forked) else 0
