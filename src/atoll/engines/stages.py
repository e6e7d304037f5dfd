"""The stages of a client program as every engine calls them: what they draw comes from the client's stream."""

from __future__ import annotations

from atoll import seeds
from atoll.contract import ClientData, Program, Reply
from atoll.draws import Drawn
from atoll.task import Batch, Task
from atoll.tensors import Record

__all__ = ["begin", "finish", "recall", "step"]

_WHO = "a client program"
_AUGMENT, _MASK = 0x61756767, 0x6D61736B


def recall(program: Program, task: Task, received: Record, stored: Record | None) -> Record:
    """`Program.recall`, which has no stream: what is remembered first is the same for every client."""
    with Drawn(None, _WHO):
        return program.recall(task, received, stored)


def begin(program: Program, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
    """`Program.begin`."""
    with Drawn(data.key, _WHO):
        return program.begin(task, received, memory, data)


def step(program: Program, task: Task, local: Record, batch: Batch) -> Record:
    """`Program.step`, with the batch augmented and its tokens hidden first where that is wanted."""
    if task.augment is not None:
        with Drawn(seeds.fold(batch.key, _AUGMENT), "the augmentation"):
            batch = batch._replace(inputs=task.augment(batch.inputs))
    if task.masking is not None:
        inputs, targets = task.masking(batch.inputs, batch.targets, seeds.fold(batch.key, _MASK))
        batch = batch._replace(inputs=inputs, targets=targets)
    with Drawn(batch.key, _WHO):
        return program.step(task, local, batch)


def finish(program: Program, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
    """`Program.finish`."""
    with Drawn(data.key, _WHO):
        return program.finish(task, local, data)
