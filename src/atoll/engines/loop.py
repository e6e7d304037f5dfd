"""The readable twin: one client after another, one step after another, nothing captured, nothing batched."""

from __future__ import annotations

import time
from typing import ClassVar

import torch

from atoll.contract import Gathering, Job, Memories, Outcome, Reducer
from atoll.data import FederatedData
from atoll.engines.client import Client
from atoll.engines.engine import Engine
from atoll.machine import threads
from atoll.task import Task

__all__ = ["Loop"]


class Loop(Engine):
    """Runs the client half as it is written.

    Args:
        client: another runner of one client's work.
    """

    name: ClassVar[str] = "loop"

    def __init__(
        self, task: Task, data: FederatedData, device: torch.device, client: Client | None = None
    ) -> None:
        super().__init__(task, data, device)
        self.client = client or Client(task, data, device)

    def run(self, job: Job, memories: Memories) -> tuple[Reducer, list[Outcome]]:
        gathering, program = Gathering(job), job.program
        with threads(1):
            for client in job.clients:
                begun = time.perf_counter()
                answer, memory = self.client.answer(
                    job.order(client), program, memories.get(client), job.changed, job.cohort
                )
                found = gathering.deliver(answer, begun, time.perf_counter())
                if memory and not found.refused:
                    memories.put(client, memory)
        return gathering.result()
