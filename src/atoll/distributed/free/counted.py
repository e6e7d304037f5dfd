"""What a server counts between two reports."""

from __future__ import annotations

import time
from typing import Any

from atoll.distributed.free.frames import Frame

__all__ = ["Counted"]


class Counted:
    """Samples and their losses, seconds without pauses, and what workers say of themselves."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._began, self._paused = time.perf_counter(), None
        self._loss, self._samples, self._memory = 0.0, 0, 0
        self._bytes: dict[int, int] = {}
        self._waited: dict[int, float] = {}

    _paused: float | None

    def add(self, frame: Frame, nbytes: int) -> None:
        """A gradient has come, of so many bytes."""
        self._loss += frame.loss
        self._samples += frame.samples
        self._memory = max(self._memory, frame.memory)
        self._bytes[frame.worker] = self._bytes.get(frame.worker, 0) + nbytes
        self._waited[frame.worker] = self._waited.get(frame.worker, 0.0) + frame.waited

    def pause(self) -> None:
        """Nothing is done from now until the next report."""
        if self._paused is None:
            self._paused = time.perf_counter()

    def taken(self) -> dict[str, Any]:
        """What there was since this was asked last; of workers the most that any had."""
        found = {
            "loss": self._loss,
            "samples": self._samples,
            "seconds": (self._paused or time.perf_counter()) - self._began,
            "bytes": max(self._bytes.values(), default=0),
            "waited": max(self._waited.values(), default=0.0),
            "memory": self._memory,
        }
        self._begin()
        return found
