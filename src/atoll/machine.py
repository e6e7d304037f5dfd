"""The machine at hand: its cores, torch's threads, and imports that take a second."""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["cores", "threads", "warm_up"]


class threads:
    """Set torch's intra-op threads inside a block. With torch's own default, a loaded machine can be 20x slower."""

    def __init__(self, count: int) -> None:
        self.count = max(1, count)

    def __enter__(self) -> None:
        self.before = torch.get_num_threads()
        torch.set_num_threads(self.count)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self.before)


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def warm_up() -> Iterator[None]:
    """Beside the work in the block, do the second of imports that tracing and function transforms need.

    The block must not use torch.func itself: two threads in these imports at once can meet a half-made module.
    """
    thread = threading.Thread(target=importlib.import_module, args=("torch._dynamo",), daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()
