"""What every engine is: something that runs a job's client work and reduces the replies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch

from atoll.contract import Job, Memories, Outcome, Reducer
from atoll.data import FederatedData
from atoll.engines.devices import Resident
from atoll.engines.padding import Padding
from atoll.task import Task

__all__ = ["Engine"]


class Engine(ABC):
    """Runs client programs. All engines give the same replies for the same job, up to rounding."""

    name: ClassVar[str]

    def __init__(self, task: Task, data: FederatedData, device: torch.device) -> None:
        self.task = task
        self.data = data
        self.device = device
        self.resident = Resident(device)
        """Samples on the device, for whoever needs them there."""
        self.padding = Padding(task, data, device)
        """Which programs must not be given padded rows."""

    @abstractmethod
    def run(self, job: Job, memories: Memories) -> tuple[Reducer, list[Outcome]]:
        """Run a job; write the memories of the clients whose replies were accepted; reduce the replies.

        Errors name client, round and stage.
        """

    def describe(self) -> str:
        """The engine and how it is set, in a few words."""
        return self.name

    @property
    def unpadded(self) -> str:
        """What to say of an engine that has stopped padding."""
        return (
            "; batches are not padded, since the model or the loss looks across their rows"
            if self.padding
            else ""
        )

    def settled(self) -> tuple[str, int | None]:
        """(name, workers) of the engine that gives the same bits again."""
        return self.name, None

    def close(self) -> None:  # noqa: B027 - most engines hold nothing
        """Release worker processes and the like."""
