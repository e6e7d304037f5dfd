"""Where client programs run: `loop` (the readable twin), `batched`, `processes`, and `auto`, which chooses."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from atoll.data import FederatedData
from atoll.engines.auto import Auto
from atoll.engines.batched import Batched
from atoll.engines.engine import Engine
from atoll.engines.forked import Processes
from atoll.engines.loop import Loop
from atoll.engines.mixed import Mixed
from atoll.errors import ConfigError, suggest
from atoll.task import Task

__all__ = [
    "ENGINES",
    "Auto",
    "Batched",
    "Engine",
    "Loop",
    "Mixed",
    "Processes",
    "make",
]

ENGINES = ("auto", "batched", "loop", "processes")


def make(
    name: str,
    tasks: Sequence[Task],
    data: FederatedData,
    device: torch.device,
    workers: int | None = None,
    rounds: int = 1,
) -> Engine:
    """The engine of that name for clients of these architectures.

    Args:
        workers: threads (batched) or processes; by default one a core.
        rounds: how many the run has, for `auto`, which spends no more on its choice than they are worth.
    """
    if len(tasks) > 1:
        return Mixed(
            tasks,
            lambda task, kind, count: make(kind or name, [task], data, device, count or workers, rounds),
        )
    (task,) = tasks
    if name == "loop":
        return Loop(task, data, device)
    if name == "batched":
        return Batched(task, data, device, workers=workers)
    if name == "processes":
        return Processes(task, data, device, workers=workers)
    if name == "auto":
        return Auto(task, data, device, workers=workers, rounds=rounds)
    raise ConfigError(f"unknown engine {name!r}", hint=suggest(name, ENGINES))
