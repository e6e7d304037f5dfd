"""Who goes on, and who waits for the slowest."""

from __future__ import annotations

import math

__all__ = ["Gate"]


class Gate:
    """Clocks of workers under a bound on their staleness.   Ho et al., NeurIPS 2013 (SSP)

    A worker's clock is how many gradients it has given. It goes on while its clock is at most `bound` above the
    slowest of the living; with 0 everybody waits for everybody (BSP), with infinity nobody waits. A gradient waits
    where its worker waits, so that those which are let go together can be applied as one.

    Args:
        bound: the largest gap between the clocks of two workers that compute.
    """

    def __init__(self, bound: float) -> None:
        self.bound = bound
        self.clocks: dict[int, int] = {}
        self.widest = 0

    def enter(self, worker: int, clock: int) -> None:
        """A worker takes part from now on."""
        self.clocks[worker] = clock

    def leave(self, worker: int) -> None:
        """It does not any more: nobody waits for it."""
        self.clocks.pop(worker, None)

    def arrive(self, worker: int) -> None:
        """It has given a gradient."""
        self.clocks[worker] += 1

    def open(self, worker: int) -> bool:
        """Whether it may go on."""
        return self.gap(worker) <= self.bound

    def go(self, worker: int) -> None:
        """It goes on."""
        self.widest = max(self.widest, self.gap(worker))

    def gap(self, worker: int) -> int:
        """How far it is ahead of the slowest."""
        return self.clocks[worker] - min(self.clocks.values())

    @property
    def waits(self) -> bool:
        """Whether anybody may ever have to."""
        return not math.isinf(self.bound)
