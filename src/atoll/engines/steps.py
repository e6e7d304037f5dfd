"""Captured steps by form: a step is traced once for each form of working state and batch it meets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from atoll.engines.base import Job, client_reading, step_keys
from atoll.engines.capture import Captured, capture
from atoll.engines.loop import Loop
from atoll.method import Program
from atoll.task import Batch, Task
from atoll.tensors import Record

__all__ = ["Sequential", "Steps"]


def form(tree: Any) -> tuple[Any, ...]:
    """Structure, shapes and types of a pytree; numbers count by value."""
    leaves, spec = pytree.tree_flatten(tree)
    return (
        str(spec),
        *((tuple(v.shape), v.dtype, v.device) if isinstance(v, Tensor) else v for v in leaves),
    )


class Steps:
    """A cache of captured steps."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.known: dict[Any, Captured] = {}

    def single(self, program: Program, local: Record, batch: Batch) -> Captured:
        """The step of one client."""
        return self.find((program, form(local), form(batch)), lambda: self._single(program), local, batch)

    def _single(self, program: Program) -> Callable[[Any, Any], Any]:
        return lambda local, batch: program.step(self.task, local, batch)

    def find(
        self, key: Any, function: Callable[[], Callable[[Any, Any], Any]], state: Any, batch: Batch
    ) -> Captured:
        found = self.known.get(key)
        if found is None:
            found = self.known[key] = capture(function(), state, batch)
        return found


def padded_width(width: int) -> int:
    """The next size of batch that is captured: exact up to 64, then in steps of about a quarter."""
    if width <= 64:
        return width
    grain = 1 << (width.bit_length() - 3)
    return -(-width // grain) * grain


class Sequential(Loop):
    """One client after another like the loop, with captured steps. Worker processes run this."""

    name = "sequential"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.steps = Steps(self.task)

    def train(self, job: Job, local: Record, client: int) -> Record:
        order = client_reading(job, self.task, client, self.data.size(client))
        count, width = order.index.shape
        if count == 0:
            return local
        program = job.program
        size = program.plan().batch_size
        width = padded_width(width if size is None else max(width, size))
        train = self.data.samples(client)
        assert train is not None
        index = torch.zeros(count, width, dtype=torch.int64)
        mask = torch.zeros(count, width)
        index[:, : order.index.shape[1]] = torch.from_numpy(order.index)
        mask[:, : order.mask.shape[1]] = torch.from_numpy(order.mask)
        rows = self.data.rows(client)
        pool = self.data.pool()
        if rows is not None and pool is not None:
            train = pool
            index = torch.from_numpy(rows)[index]
        keys = step_keys(job, [client], count)[0]

        def batch(t: int) -> list[Tensor]:
            return [
                train.inputs.index_select(0, index[t]),
                train.targets.index_select(0, index[t]),
                mask[t],
                keys[t],
            ]

        leaves, spec = pytree.tree_flatten(local)
        step = self.steps.single(program, local, Batch(*batch(0)))
        leaves = [v.clone() if i in step.changed else v for i, v in enumerate(leaves)]
        for t in range(count):
            leaves = step(leaves, batch(t))
        result = pytree.tree_unflatten(leaves, spec)
        assert isinstance(result, Record)
        return result
