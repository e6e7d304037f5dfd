"""What the server's own data say: one client's work on them, by the server."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from atoll.contract import Job, Order, Reply
from atoll.data import Samples, from_clients
from atoll.engines.client import Client
from atoll.machine import threads
from atoll.task import Task

__all__ = ["Root"]

_ELSE = 1 << 40  # so that its draws are not those of the first client


class Root:
    """Does a job's work on samples that the server has, as a client would that has no memory.

    What happens to updates on their way is left out. Draws have the address of a client that there is not.

    Args:
        tasks: the architectures of the clients; the server's is the first.
        samples: the root data.
        classes: how many there are; None for a regression.
    """

    def __init__(
        self, tasks: Sequence[Task], samples: Samples, classes: int | None, device: torch.device
    ) -> None:
        data = from_clients({"root": {"train": (samples.inputs, samples.targets)}}, classes=classes)
        self._client = Client(tasks[0], data, device)

    def __call__(self, job: Job) -> Reply:
        """The server's reply to a job."""
        work = job.work
        order = Order(0, job.round, job.seed + _ELSE, work.program, work.shared)
        with threads(1):
            answer, _ = self._client.answer(order, job.method.program(work.program), None)
        return answer.reply
