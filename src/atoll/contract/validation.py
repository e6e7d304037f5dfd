"""A program that judges, on a client's validation data."""

from __future__ import annotations

from dataclasses import dataclass

from atoll.contract.around import Through
from atoll.contract.messages import ClientData, Reply
from atoll.contract.method import Program
from atoll.task import Task
from atoll.tensors import Record

__all__ = ["ON_VALIDATION", "OnValidation"]

ON_VALIDATION = " on validation"
"""What follows the name of a program ("evaluate", "personal") that is to judge on validation data."""


@dataclass(frozen=True)
class OnValidation(Through):
    """Runs a program with the client's validation data in the place of its test data, which it never sees."""

    inner: Program

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys("validation" if split == "test" else split for split in self.inner.reads))

    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        return self.inner.begin(task, received, memory, self._seen(data))

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        return self.inner.finish(task, local, self._seen(data))

    def _seen(self, data: ClientData) -> ClientData:
        known = data.validation if "validation" in self.inner.reads else None
        return data._replace(test=data.validation, validation=known)
