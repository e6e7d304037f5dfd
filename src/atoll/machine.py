"""The machine at hand: its cores and torch's threads."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from pathlib import Path

import torch

__all__ = ["Neighbours", "cores", "give_back", "threads"]


class threads:
    """Set torch's intra-op threads inside a block. With torch's own default, a loaded machine can be 20x slower.

    Several threads wait for each other asleep where other processes use the cores (see `Neighbours`).
    """

    def __init__(self, count: int) -> None:
        self.count = max(1, count)

    def __enter__(self) -> None:
        self.before = torch.get_num_threads()
        torch.set_num_threads(self.count)
        if self.count > 1:
            _neighbours.heed(self.count)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self.before)


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def give_back() -> None:
    """Give the system memory that is free here, where the C library can (GNU's).

    It keeps what lies below anything that is in use, and what it has had once is then counted as this process's for
    good. What is needed again is fresh memory, which the system clears: for what happens once, not between steps.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


class Neighbours:
    """Other processes on the cores that this one may use, and what is done about them.

    Threads of OpenMP wait for each other awake at the end of every operation. On a core that somebody else could use
    that holds up both: a round of many small operations is then several times as long. GNU's OpenMP, torch's on Linux,
    has its threads fall asleep at once when it counts more of them than cores, also long after it was loaded, when
    settings of the environment no longer help. A second team makes it count more; it does nothing but sleep. On an idle
    machine sleeping costs a tenth, so that the team is there only while there are neighbours.
    """

    BUSY, IDLE = 0.3, 0.15  # cores that others use from which on there are neighbours, and none any more
    _WINDOW = 0.2  # seconds over which that is measured, at least: the system counts hundredths

    def __init__(self) -> None:
        self.there = False
        self._seen = self._spent()
        self._leave: threading.Event | None = None

    def heed(self, team: int) -> None:
        """Look whether others use the cores, if it is time, and have a team of so many threads sleep or leave."""
        others = self.others()
        if others is None:
            return
        self.there = others > (self.IDLE if self.there else self.BUSY)
        if self.there and self._leave is None:
            self._leave = _asleep(team)
        elif not self.there and self._leave is not None:
            self._leave.set()
            self._leave = None

    def others(self) -> float | None:
        """Cores that others have used since this was asked last; None: asked too early, or nobody counts."""
        now = self._spent()
        if now is None or self._seen is None or now[0] - self._seen[0] < self._WINDOW:
            return None
        wall, all_of_it, own = (after - before for after, before in zip(now, self._seen, strict=True))
        self._seen = now
        return (all_of_it - own) / wall

    @staticmethod
    def _spent() -> tuple[float, float, float] | None:
        """Seconds: of the clock, of everybody's work on this process's cores, of its own; None if nobody counts."""
        try:
            lines = Path("/proc/stat").read_text().splitlines()
            own = {f"cpu{core}" for core in os.sched_getaffinity(0)}
            counted = [list(map(int, line.split()[1:9])) for line in lines if line.split(" ", 1)[0] in own]
            ticks = sum(
                sum(each[:3]) + sum(each[5:8]) for each in counted
            )  # all but idle, and waiting for a disk
            return time.monotonic(), ticks / os.sysconf("SC_CLK_TCK"), time.process_time()
        except (OSError, AttributeError, ValueError):
            return None


def _asleep(team: int) -> threading.Event:
    """A team of threads that sleep until the event."""
    there, leave = threading.Event(), threading.Event()

    def sleep() -> None:
        torch.set_num_threads(team)
        torch.ones(1 << 18).add_(1)  # large enough to be shared: the team is made
        there.set()
        leave.wait()

    threading.Thread(target=sleep, name="atoll-asleep", daemon=True).start()
    there.wait()
    return leave


_neighbours = Neighbours()
