"""What workers read next, and how far the run is: by their clocks, or by tickets."""

from __future__ import annotations

import math

from atoll.distributed.free.frames import Frame
from atoll.distributed.free.gate import Gate

__all__ = ["Clocks", "Tickets"]


class Clocks:
    """Each worker reads its own part of every batch, at its own clock, under a bound.

    A worker that is gone is not waited for, and its parts are read by nobody until one in its place comes: that one
    begins where no other is yet, so that all servers agree on it.
    """

    together = True
    """Whether gradients of one step are one update."""

    def __init__(self, gate: Gate, workers: int, start: int, steps: int, every: int) -> None:
        self.gate, self.steps, self.every = gate, steps, every
        self._boundary: float = min(start + every, steps)
        self._low = start
        self._done: dict[int, int] = {}  # steps of each that were applied, the dead too
        self._from: dict[int, int] = {}
        self._expected = set(range(workers))
        for worker in self._expected:
            self._place(worker, start)

    def _place(self, worker: int, clock: int) -> None:
        self.gate.enter(worker, clock)
        self._done[worker] = self._from[worker] = clock

    def enter(self, worker: int, step: int) -> None:
        """A worker is there; with the step that another server has told it, or -1."""
        if worker in self._expected:
            self._expected.remove(worker)
            return
        others = self.gate.clocks.values()
        ahead = max(others) + 2 if others else self._low  # one may have given a gradient here and not there
        self._place(worker, min(self.steps, ahead if step < 0 else step))

    def leave(self, worker: int) -> None:
        """It is gone; what it has finished counts."""
        self._expected.discard(worker)
        if self.gate.clocks.get(worker) != self.steps:
            self.gate.leave(worker)

    def due(self, frame: Frame) -> bool:
        """Whether that was to be read."""
        return frame.part == frame.worker and frame.step == self.gate.clocks[frame.worker] < self.steps

    def arrive(self, frame: Frame) -> None:
        """A gradient is here."""
        self.gate.arrive(frame.worker)

    def open(self, worker: int) -> bool:
        """Whether its gradient may be applied, and it may go on."""
        return self.gate.open(worker)

    def applied(self, frame: Frame) -> None:
        """It was."""
        self._done[frame.worker] = frame.step + 1
        self.gate.go(frame.worker)

    def next(self, worker: int) -> tuple[int, int]:
        """What it reads now, step and part; a step of -1 where the run is over for it."""
        clock = self.gate.clocks[worker]
        return (clock if clock < self.steps else -1), worker

    def present(self, step: int) -> list[int]:
        """Whose gradients there are for a step, or will be."""
        return [
            worker
            for worker, done in self._done.items()
            if self._from[worker] <= step and (worker in self.gate.clocks or done > step)
        ]

    def complete(self, step: int) -> bool:
        """Whether those are all workers."""
        return len(self.present(step)) == len(self._done)

    @property
    def report(self) -> bool:
        """Whether a report is due: all steps before have been applied, of the living."""
        self._low = max(self._low, min((self._done[worker] for worker in self.gate.clocks), default=0))
        return self._low >= self._boundary

    def reported(self) -> None:
        """It was made."""
        self._boundary = _after(self._boundary, self.every, self.steps)


class Tickets:
    """Nobody waits, and every update is one worker's: tickets for so many as workers times steps are given out.

    Where samples are `shared` a ticket is for the next part of the batch that nobody has read; else for the worker's
    own samples, in its own order. The part that a worker had in hand when it died is read by nobody; all others are
    read by those who are there.

    Args:
        first: whether this server gives the tickets; the others hear of them from the workers.
    """

    together = False

    def __init__(self, workers: int, start: int, steps: int, every: int, shared: bool, first: bool) -> None:
        self.workers, self.steps, self.every, self.shared, self.first = workers, steps, every, shared, first
        self._boundary: float = min(start + every, steps)
        self._next, self._past = start * workers, start * workers
        self._clocks = [start] * workers
        self._held: dict[int, tuple[int, int]] = {}

    def enter(self, worker: int, step: int) -> None:
        """A worker is there."""

    def leave(self, worker: int) -> None:
        """It is gone, and so is what it held."""
        self._past += self._held.pop(worker, None) is not None

    def due(self, frame: Frame) -> bool:
        """Whether it holds that."""
        if not self.first:
            return frame.step >= 0
        return self._held.get(frame.worker) == (frame.step, frame.part)

    def arrive(self, frame: Frame) -> None:
        """A gradient is here."""

    def open(self, worker: int) -> bool:
        """Always."""
        return True

    def applied(self, frame: Frame) -> None:
        """A gradient was applied."""
        self._past += self._held.pop(frame.worker, None) is not None

    def next(self, worker: int) -> tuple[int, int]:
        """The next ticket, step and part; a step of -1 where there is none."""
        if not self.first:
            return 0, worker
        if self._next >= self.steps * self.workers:
            return -1, worker
        ticket = divmod(self._next, self.workers) if self.shared else (self._clocks[worker], worker)
        self._next += 1
        self._clocks[worker] += 1
        self._held[worker] = ticket
        return ticket

    def present(self, step: int) -> list[int]:
        """Every update stands for itself."""
        return []

    def complete(self, step: int) -> bool:
        """So there is nothing to make up for."""
        return True

    @property
    def report(self) -> bool:
        """Whether a report is due."""
        return self.first and self._past >= self._boundary * self.workers

    def reported(self) -> None:
        """It was made."""
        self._boundary = _after(self._boundary, self.every, self.steps)


def _after(boundary: float, every: int, steps: int) -> float:
    """The step of the report after one."""
    return min(boundary + every, steps) if boundary < steps else math.inf
