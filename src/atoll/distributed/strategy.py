"""What a strategy is: how several workers train one model."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from atoll import spec
from atoll.distributed.learner import Context, Learner, Replica
from atoll.errors import ConfigError
from atoll.optimizers import Optimizer
from atoll.task import Task

__all__ = ["Free", "Strategy"]


@dataclass(frozen=True)
class Strategy(ABC):
    """How several workers train one model; a frozen dataclass whose fields are its settings.

    `takes` are the arguments of its text ("diloco:50"). `degree` workers hold one model together: so many fewer parts
    has each batch. Where `local`, a worker steps along the mean gradient of its own samples: another algorithm than one
    worker's with the whole batch. Where `apart`, workers cannot share a GPU. Whatever it is, a run may go on
    with another number of workers.
    """

    name: ClassVar[str]
    says: ClassVar[str]
    """What it is, in a line."""
    takes: ClassVar[tuple[spec.Parameter, ...]] = ()
    local: ClassVar[bool] = False
    apart: ClassVar[bool] = False

    @property
    def degree(self) -> int:
        """Workers that hold one model together."""
        return 1

    @property
    def grain(self) -> int:
        """A run has a multiple of so many steps, and so has what lies between two reports."""
        return 1

    @property
    def text(self) -> str:
        """How it is written."""
        return self.name

    def check(self, workers: int, task: Task, batch: int) -> None:
        """Raise ConfigError where so many workers cannot train this so."""
        if workers % self.degree:
            raise ConfigError(
                f"strategy = {self.text!r} needs {self.degree} workers for each copy of the model,"
                f" and there are {workers}",
                hint=f"take a multiple of {self.degree} workers",
            )
        if batch < workers // self.degree:
            raise ConfigError(
                f"a batch of {batch} samples cannot be divided among {workers // self.degree} workers",
                hint="take a larger batch: it counts the samples of all workers together",
            )

    @abstractmethod
    def learner(self, context: Context) -> Learner:
        """A worker's part."""


@dataclass(frozen=True)
class Free(Strategy):
    """A strategy whose workers go their own ways: there are no collectives, and a process of its own keeps the run.

    A worker that dies is missed by nobody; a new one may take its place.
    """

    @property
    def servers(self) -> int:
        """Further processes, that have the model."""
        return 0

    def check(self, workers: int, task: Task, batch: int) -> None:
        super().check(workers, task, batch)
        if not hasattr(os, "memfd_create"):
            raise ConfigError(
                f"strategy = {self.text!r} shares memory as Linux alone does",
                hint="ddp and diloco go everywhere",
            )

    def admit(self, optimizer: Optimizer, clip: float | None) -> None:
        """Raise ConfigError for an optimiser that this cannot step with, or a gradient's bound that it cannot keep."""

    def learner(self, context: Context) -> Replica:
        """A worker's model, which computes gradients."""
        return Replica(context)
