"""What methods of adapters share: the factors of a task."""

from __future__ import annotations

from atoll.adapters import Pair, is_adapted, pairs
from atoll.contract import Method
from atoll.errors import ConfigError
from atoll.task import Task

__all__ = ["factored"]


def factored(method: Method, task: Task) -> list[Pair]:
    """The factors that are trained.  Raises ConfigError where the model has none."""
    found = pairs(task.module)
    if found:
        return found
    name = type(method).__name__
    if is_adapted(task.module):
        raise ConfigError(
            f"{name} averages factors of low rank, and the adapter of this model has none",
            hint='set adapter="lora:8,16", or method="fedavg", which averages any adapter',
        )
    raise ConfigError(
        f"{name} averages adapters, and the model has none: all of it is trained",
        hint='set adapter="lora:8,16", or method="fedavg" for the whole model',
    )
