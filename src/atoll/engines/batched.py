"""Many clients at once: the one-client functions under `vmap`, captured, on the CPU or a GPU.

Clients are sorted by how many steps they have and run in groups (`engines/group.py`). What is the same for all clients
of a group (the received model that a proximal term pulls to, the learning rate) stays a single tensor; what differs is
stacked. Once the shorter clients are done, the longer ones go on as the first rows of the stack, of which few
different widths are captured (`engines/widths.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from atoll.contract import Job, Memories, Outcome, Reducer
from atoll.data import FederatedData, Samples
from atoll.data.samples import concatenate
from atoll.engines.devices import Room
from atoll.engines.engine import Engine
from atoll.engines.group import Group
from atoll.engines.reading import Reading, the_order
from atoll.engines.replay import Replays
from atoll.engines.steps import Steps, form
from atoll.errors import EngineError
from atoll.machine import cores, threads
from atoll.purity import as_batched
from atoll.task import Task
from atoll.tensors import nbytes

__all__ = ["Batched"]


class Batched(Engine):
    """Runs clients together.

    Args:
        width: most clients in a group; by default as many as memory allows.
    """

    name: ClassVar[str] = "batched"

    def __init__(
        self,
        task: Task,
        data: FederatedData,
        device: torch.device,
        width: int | None = None,
        workers: int | None = None,
    ) -> None:
        super().__init__(task, data, device)
        self.width = width
        self.threads = workers or cores()
        self.steps = Steps(task)
        self.spread: dict[Any, Any] = {}  # see `Host`
        self.room = Room(device)
        self.replays = Replays(device) if device.type == "cuda" else None

    def describe(self) -> str:
        where = (
            str(self.device)
            if self.device.type != "cpu"
            else f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        )
        return f"{self.name}, {where}{self.unpadded}"

    def settled(self) -> tuple[str, int | None]:
        return self.name, self.threads

    @property
    def captures(self) -> int:
        """How many steps have been captured, which differ in width or form."""
        return len(self.steps.known)

    def run(self, job: Job, memories: Memories) -> tuple[Reducer, list[Outcome]]:
        reducer = job.reducer()
        outcomes: list[Outcome] = []
        plan = job.program.plan()
        sizes = [self.data.size(client) for client in job.clients]
        orders = [the_order(job.order(client), plan, self.task, self.data) for client in job.clients]
        by_steps = sorted(range(len(orders)), key=lambda at: -len(orders[at].index))
        model = max((nbytes(job.work.received(client)) for client in job.clients[:4]), default=0)
        need = 4 * model + self._samples(job, max(sizes, default=1))
        with threads(self.threads), torch.no_grad(), as_batched():
            padded = not self.padding.seen(job, memories)
            for alike in self._alike(job, by_steps, padded):
                while alike:
                    width = min(self.width or len(alike), self.room.width(len(alike), need, model))
                    found = self._together(job, alike[:width], orders, memories, reducer, padded)
                    if found is None:  # here all that the group held is gone
                        if not (self.replays and self.replays.forget()):
                            self.room.halve(min(width, len(alike)))
                    else:
                        outcomes, alike = outcomes + found, alike[width:]
        outcomes.sort(key=lambda outcome: outcome.client)
        return reducer, outcomes

    def _together(
        self,
        job: Job,
        at: list[int],
        orders: list[Reading],
        memories: Memories,
        reducer: Reducer,
        padded: bool,
    ) -> list[Outcome] | None:
        """Run the job's clients at these positions as one group; None where the device has no memory for so many."""
        group = Group(self, job, [job.clients[i] for i in at], [orders[i] for i in at], memories, padded)
        try:
            part, outcomes = group.run()
        except torch.cuda.OutOfMemoryError as error:
            if len(at) > 1 or (self.replays and self.replays.recorded):
                return None
            raise EngineError(
                f"{group.where()}: the work of a single client does not fit the memory of {self.device}",
                hint='lower batch_size, or use device="cpu"',
            ) from error
        if part is not None:
            reducer.merge(part)
        return outcomes

    def _samples(self, job: Job, samples: int) -> int:
        """Bytes that the samples of one client of a group take, about, and what is computed from them."""
        example = nbytes(self.data.example().inputs)
        rows = samples if job.program.reads else min(samples, job.program.plan().batch_size or samples)
        return 16 * rows * example

    def _alike(self, job: Job, order: Sequence[int], padded: bool) -> list[list[int]]:
        """Positions in the job, in this order, by what clients are sent: only payloads of one form can be stacked.

        Where nothing may be padded, also by how many samples the splits have that the program looks at.
        """
        whole = [] if padded else [split for split in job.program.reads if split != "public"]
        if not job.work.own and not whole:
            return [list(order)]
        groups: dict[Any, list[int]] = {}
        for at in order:
            client = job.clients[at]
            sizes = [
                0 if (s := self.data.samples(client, split)) is None else len(s.targets) for split in whole
            ]
            groups.setdefault((form(job.work.own.get(client)), *sizes), []).append(at)
        return list(groups.values())

    def pool(self, clients: Sequence[int], split: str) -> tuple[Samples, list[np.ndarray[Any, Any]]]:
        """Tensors on the device that hold these clients' samples, and the rows of each client in them."""
        pool = self.data.pool(split)
        if pool is not None:
            own = [self.data.rows(client, split) for client in clients]
            return self.resident(pool), [r if r is not None else np.zeros(0, np.int64) for r in own]
        found = [self.data.samples(client, split) for client in clients]
        parts = [s for s in found if s is not None and s.count]
        rows, start = [], 0
        for samples in found:
            count = 0 if samples is None else samples.count
            rows.append(np.arange(start, start + count))
            start += count
        whole = concatenate(parts)
        return Samples(whole.inputs.to(self.device), whole.targets.to(self.device)), rows
