"""Parameters in memory that all workers write, without locks."""

from __future__ import annotations

import mmap
import os
import resource
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from atoll.distributed.free.room import Room, packed, unpack
from atoll.distributed.free.worker import part_of
from atoll.distributed.learner import Replica

if TYPE_CHECKING:
    from atoll.distributed.play import Job

__all__ = ["Common"]

_FIELDS = ("steps", "samples", "loss", "late", "memory")  # what a worker counts, since the attempt began


class Common:
    """The topology of Hogwild: workers step the parameters where they lie, one machine's memory, each when it likes.

    Each counts its own steps in a place of its own, so that no lock is needed for that either. The run is over when
    there are as many in all as workers times steps; a worker that is gone leaves what remains to the others.
    """

    def __init__(self, job: Job, replica: Replica) -> None:
        self.job, self.room = job, Room(replica)
        size = len(_FIELDS) * job.workers
        counted = np.frombuffer(mmap.mmap(-1, 8 * (size + 2)), np.float64)
        self._counted, self._told = counted[:size].reshape(job.workers, -1), counted[size:]
        """`_told`: the attempt that may begin, and after which step."""
        self._bell, self._rope = os.pipe()
        os.set_blocking(self._rope, False)

    def _steps(self) -> int:
        """Updates by all workers."""
        return int(self._counted[:, 0].sum())

    # --- a worker -----------------------------------------------------------------------------------------------

    def work(self, replica: Replica, rank: int, attempt: int) -> None:
        """What a worker does."""
        job, mine = self.job, self._counted[rank]
        deadline = time.monotonic() + job.training.timeout
        while self._told[0] <= attempt:
            if time.monotonic() > deadline:
                raise ConnectionError("nobody has said where to begin")
            time.sleep(0.002)
        start, training = int(self._told[1]), job.training
        self.room.lay(replica)
        total = (job.steps - start) * job.workers
        rung = self._steps() // (job.every * job.workers)
        while (seen := self._steps()) < total:
            step = start + int(mine[0])
            share = part_of(job, step, rank)
            loss = replica.step(step, share, training.lr * training.factor(step))
            mine[1:4] += (
                len(share.rows),
                float(loss) * len(share.rows),
                max(0, self._steps() - seen),
            )
            mine[4] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            mine[0] += 1
            now = self._steps() // (job.every * job.workers)
            if now > rung:
                rung = now
                self._ring()
        self._ring()

    def _ring(self) -> None:
        """Have the keeper look."""
        with suppress(BlockingIOError):  # it has enough to look at
            os.write(self._rope, b"!")

    # --- the keeper ---------------------------------------------------------------------------------------------

    def begin(self, replica: Replica, step: int, attempt: int) -> None:
        """Have the workers go on from a model, after so many steps."""
        self.room.params.copy_(replica.params)
        self.room.buffers.copy_(packed(replica.module))
        self._counted[:] = 0
        self._before = self._counted.copy()
        self._start = step
        self._told[1] = step
        self._told[0] = attempt + 1
        self._began = time.perf_counter()

    def at(self, replica: Replica, step: int) -> Mapping[str, float]:
        """Wait until so many steps are done: the model then, into `replica`, and what was counted on the way."""
        while self._steps() < (step - self._start) * self.job.workers:
            os.read(self._bell, 1 << 12)
        replica.params.copy_(self.room.params)
        unpack(replica.module, self.room.buffers)
        now, counted = time.perf_counter(), self._counted.copy()
        seconds, self._began = now - self._began, now
        since = (counted - self._before).sum(0)
        self._before = counted
        steps, samples, loss, late, _ = since.tolist()
        return {
            "loss": loss / max(1.0, samples),
            "samples": samples,
            "seconds": seconds,
            "bytes": 0.0,
            "waiting": 0.0,
            "memory": float(counted[:, 4].max()),
            "staleness": late / max(1.0, steps),
        }

    def end(self) -> None:
        """It is over; the workers know."""
