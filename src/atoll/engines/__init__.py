"""Where client programs run: `loop` (the readable twin), `batched`, `processes`, `ray`, and `auto`, which chooses."""

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
from atoll.engines.ray import Ray
from atoll.engines.silo import Silos, processes
from atoll.errors import ConfigError, suggest
from atoll.task import Task

__all__ = [
    "ALIKE",
    "ENGINES",
    "Auto",
    "Batched",
    "Engine",
    "Loop",
    "Mixed",
    "Processes",
    "Ray",
    "Silos",
    "make",
]

ENGINES = ("auto", "batched", "loop", "processes", "ray")
ALIKE = ("processes", "ray")
"""Engines that give the same bits, where they train on the CPU: what one has begun another may end."""


def make(
    name: str,
    tasks: Sequence[Task],
    data: FederatedData,
    device: torch.device,
    workers: int | None = None,
    rounds: int = 1,
    address: str | None = None,
    gpus: float = 0.0,
    beside: int = 1,
    silo: str | None = None,
) -> Engine:
    """The engine of that name for clients of these architectures.

    Args:
        workers: threads (batched), processes or actors; by default one a core.
        rounds: how many the run has, for `auto`, which spends no more on its choice than they are worth.
        address, gpus, beside: see `Ray`.
        silo: what does a client's work together ("ddp:2"), where it is more than one process.
    """
    if len(tasks) > 1:
        return Mixed(
            tasks,
            lambda task, kind, count: make(
                kind or name, [task], data, device, count or workers, rounds, address, gpus, len(tasks), silo
            ),
        )
    (task,) = tasks
    if silo is not None:
        if name not in ("auto", "loop"):
            raise ConfigError(
                f"silo = {silo!r} is several processes for a client, and engine = {name!r} has its own",
                hint="leave engine out",
            )
        return Silos(task, data, device, processes(silo))
    if name == "loop":
        return Loop(task, data, device)
    if name == "batched":
        return Batched(task, data, device, workers=workers)
    if name == "processes":
        return Processes(task, data, device, workers=workers)
    if name == "ray":
        return Ray(task, data, device, workers, address, gpus, beside)
    if name == "auto":
        return Auto(task, data, device, workers=workers, rounds=rounds)
    raise ConfigError(f"unknown engine {name!r}", hint=suggest(name, ENGINES))
