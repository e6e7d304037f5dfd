"""Threads of ours instead of torch's: each works on some clients of a stack from the first step to the last.

Torch's own threads share every operation, and wait for each other at its end: a core that another process is using
holds up all of them, thousands of times a round. Clients do not depend on each other, so here each thread takes some of
them, and nobody waits before the end. Kernels release the interpreter's lock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

__all__ = ["Lanes"]


class Lanes:
    """Some threads, the caller's among them, in which torch computes on one thread each.

    Args:
        count: how many work at once.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._others: ThreadPoolExecutor | None = None

    def run(self, tasks: Sequence[Callable[[], object]]) -> None:
        """Do all tasks, the first of them here. What one raises is raised once all have ended."""
        if len(tasks) < 2:
            for task in tasks:
                task()
            return
        if self._others is None:
            self._others = ThreadPoolExecutor(self.count - 1, "atoll-lane", initializer=_single)
        given = [self._others.submit(_plainly, task) for task in tasks[1:]]
        try:
            tasks[0]()
        finally:
            errors = [each.exception() for each in given]
        for error in errors:
            if error is not None:
                raise error

    def close(self) -> None:
        """Let the threads end."""
        others, self._others = self._others, None
        if others is not None:
            others.shutdown()


def _single() -> None:
    torch.set_num_threads(1)


def _plainly(task: Callable[[], object]) -> None:
    with torch.no_grad():
        task()
