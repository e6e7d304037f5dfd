"""Whether a client program sees padded rows: found once a program, by padding the work of one client and looking.

Engines fill short batches and splits up with rows of mask 0, so that work of one shape can be captured and batched.
Masks keep them out of what Atoll computes. A loss that compares the samples of a batch, a buffer that follows the mean
of a batch or a module with statistics of its own knows nothing of masks: what it does would depend on the engine.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from atoll.contract import ClientData, Job, Memories, Program
from atoll.data import FederatedData
from atoll.engines import stages
from atoll.engines.client import Client
from atoll.engines.reading import gather, step_keys, the_order
from atoll.parts import each_part
from atoll.task import Batch, Task
from atoll.tensors import Record, Tensors, leaves

__all__ = ["Padding", "looks_across"]

_ROWS = 2  # that are added
_FEWEST = 3  # samples of the client that is tried, if there is one with so many
_LOOKED_AT = 16  # clients among whom it is chosen


class Padding:
    """What is known of the programs of a task."""

    def __init__(self, task: Task, data: FederatedData, device: torch.device) -> None:
        self.task, self.data, self.device = task, data, device
        self._seen: dict[Program, bool] = {}

    def __bool__(self) -> bool:
        """Whether a program that sees padding has been met."""
        return any(self._seen.values())

    def seen(self, job: Job, memories: Memories) -> bool:
        """Whether the job's program does something else where batches and splits are padded."""
        program = job.program
        if program not in self._seen:
            self._seen[program] = self._tried(job, program, memories)
        return self._seen[program]

    @torch.no_grad()
    def _tried(self, job: Job, program: Program, memories: Memories) -> bool:
        some = sorted(job.clients[:_LOOKED_AT], key=self.data.size)
        client = next((k for k in some if self.data.size(k) >= _FEWEST), some[-1])
        try:
            received, memory, data = Client(self.task, self.data, self.device).given(
                job.order(client), program, memories.get(client)
            )
            batch = self._batch(job, program, client)
            start = stages.begin(program, self.task, received, memory, data)

            def came(data: ClientData, batch: Batch | None) -> list[Any]:
                local = stages.begin(program, self.task, received, memory, data)
                if batch is not None:
                    local = stages.step(program, self.task, local, batch)
                reply, after = stages.finish(program, self.task, local, data)
                return [local, Record(reply=reply.to_record(), after=after)]

            alone = came(data, batch)
        except Exception:  # what fails here fails in the run as well, and is told there
            return False
        try:
            first, other = (came(_padded(data, at), batch and _more(batch, at)) for at in (0, -1))
        except Exception:  # only with padding
            return True
        # What padding holds adds exact zeros where it has mask 0; that there is some may change the order of sums.
        return not (_close(first, other, start, 1e-4, 4) and _close(alone, first, start, 0.02, 64))

    def _batch(self, job: Job, program: Program, client: int) -> Batch | None:
        """The first batch that the client reads."""
        order = job.order(client)
        read = the_order(order, program.plan(), self.task, self.data)
        train = self.data.samples(client)
        if not len(read.index) or train is None:
            return None
        rows = torch.from_numpy(read.index[0][read.mask[0] > 0])
        inputs, targets = gather(train, rows)
        inputs, targets = inputs.to(self.device), targets.to(self.device)
        key = step_keys(order, [client], 1)[0, 0].to(self.device)
        return Batch(inputs, targets, torch.ones(len(rows), device=self.device), key)


def looks_across(task: Task, params: Tensors, buffers: Tensors, batch: Batch) -> bool:
    """Whether a model or its loss makes something of a batch that samples by themselves do not."""

    def came(batch: Batch) -> list[Any]:
        return [
            Record(zip(("gradient", "loss", "buffers"), task.gradient(params, buffers, batch), strict=True))
        ]

    alone, first, other = came(batch), came(_more(batch, 0)), came(_more(batch, -1))
    start = Record(gradient=params.zeros(), loss=torch.zeros(()), buffers=buffers)
    return not (_close(first, other, start, 1e-4, 4) and _close(alone, first, start, 0.02, 64))


def _more(batch: Batch, at: int) -> Batch:
    """The batch with rows of mask 0 at its end, which are like the one at this position."""

    def longer(part: Tensor) -> Tensor:
        return torch.cat([part, part[at].expand(_ROWS, *part.shape[1:])])

    nothing = torch.zeros(_ROWS, dtype=batch.mask.dtype, device=batch.mask.device)
    return Batch(
        each_part(longer, batch.inputs), longer(batch.targets), torch.cat([batch.mask, nothing]), batch.key
    )


def _padded(data: ClientData, at: int) -> ClientData:
    splits = {
        name: _more(part, at)
        for name in ("train", "validation", "test")
        if (part := getattr(data, name)) is not None
    }
    return data._replace(**splits)  # type: ignore[arg-type]


def _close(one: list[Any], other: list[Any], start: Record, share: float, units: float) -> bool:
    """Whether two outcomes differ by rounding at most.

    Args:
        start: the working state before, which says how far things moved.
        share: of that, which rounding never comes near.
        units: in the last place of the largest leaf.
    """
    before: list[Any] = leaves(start)
    whole = max((_norm(leaf) for leaf in leaves(one[0])), default=0.0)
    for at, (a, b) in enumerate(zip(leaves(one), leaves(other), strict=True)):
        if not isinstance(a, Tensor) or a.shape != b.shape:
            if isinstance(a, Tensor) or a != b:
                return False
        elif not a.is_floating_point():
            if not torch.equal(a, b):
                return False
        else:
            old = before[at] if at < len(before) else None
            moved = _norm(a - old) if isinstance(old, Tensor) and old.shape == a.shape else _norm(a)
            if not _norm(a - b) <= share * moved + units * torch.finfo(a.dtype).eps * whole:
                return False
    return True


def _norm(leaf: Any) -> float:
    return float(leaf.double().norm()) if isinstance(leaf, Tensor) and leaf.numel() else 0.0
