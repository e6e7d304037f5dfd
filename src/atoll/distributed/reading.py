"""Which samples a worker reads in which step.

The order does not depend on how many workers there are: a step has one batch, and workers have parts of it. One worker
alone, two and four compute the same steps, and a run may go on with another number of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from atoll import seeds
from atoll.data.samples import IntArray

__all__ = ["Divided", "Fixed", "Reading", "Share", "parts"]


@dataclass(frozen=True)
class Share:
    """A worker's part of a step: its `rows` of the training samples, of `count` that all workers read together."""

    rows: IntArray
    count: int


def parts(count: int, weights: Sequence[float]) -> tuple[int, ...]:
    """How many of `count` samples each worker has, in proportion to the weights: the sum is `count`."""
    return _parts(count, tuple(weights))


@lru_cache(maxsize=64)  # every step asks, and few answers differ
def _parts(count: int, weights: tuple[float, ...]) -> tuple[int, ...]:
    ends = np.rint(np.cumsum(np.asarray(weights, np.float64)) / np.sum(weights) * count).astype(int)
    return tuple(np.diff(ends, prepend=0).tolist())


class Reading:
    """The order of a run; `steps` are those of an epoch."""

    steps: int

    def share(self, step: int, worker: int) -> Share:
        """What a worker reads in a step, counted from 0."""
        raise NotImplementedError


class Divided(Reading):
    """All samples in a new order every epoch, and each batch divided among the workers.

    Args:
        samples: how many there are.
        batch: samples in a step, over all workers; the last of an epoch may have fewer.
        weights: what the workers' parts are in proportion to.
    """

    def __init__(self, samples: int, batch: int, weights: Sequence[float], seed: int) -> None:
        self.samples, self.batch, self.weights, self.seed = samples, min(batch, samples), weights, seed
        self.steps = -(-samples // self.batch)
        self._order: tuple[int, IntArray] = -1, np.zeros(0, np.int64)

    def share(self, step: int, worker: int) -> Share:
        epoch, at = divmod(step, self.steps)
        if self._order[0] != epoch:
            self._order = epoch, seeds.rng(self.seed, "train.order", epoch).permutation(self.samples)
        rows = self._order[1][at * self.batch : (at + 1) * self.batch]
        sizes = parts(len(rows), self.weights)
        start = sum(sizes[:worker])
        return Share(rows[start : start + sizes[worker]], len(rows))


class Fixed(Reading):
    """Every worker has samples of its own, and reads them in a new order every epoch of its own.

    It is the order of a federation's client of that number with one local epoch a round.

    Args:
        rows: of each worker.
        batch: samples in a step, over all workers, divided by `weights`; at least one of each worker.
    """

    def __init__(self, rows: Sequence[IntArray], batch: int, weights: Sequence[float], seed: int) -> None:
        self.rows, self.seed = rows, seed
        self.sizes = [
            min(max(1, size), len(own)) for size, own in zip(parts(batch, weights), rows, strict=True)
        ]
        self.lengths = [-(-len(own) // size) for own, size in zip(rows, self.sizes, strict=True)]
        self.steps = max(self.lengths)
        self._orders: dict[int, tuple[int, IntArray]] = {}

    def share(self, step: int, worker: int) -> Share:
        counts = [self._count(step, other) for other in range(len(self.rows))]
        epoch, at = divmod(step, self.lengths[worker])
        known = self._orders.get(worker)
        if known is None or known[0] != epoch:
            order = self.rows[worker][
                seeds.rng(self.seed, "order", epoch + 1, worker).permutation(len(self.rows[worker]))
            ]
            known = self._orders[worker] = epoch, order
        start = at * self.sizes[worker]
        return Share(known[1][start : start + self.sizes[worker]], sum(counts))

    def _count(self, step: int, worker: int) -> int:
        at = step % self.lengths[worker] * self.sizes[worker]
        return min(self.sizes[worker], len(self.rows[worker]) - at)
