"""What a coordinator tells of its run: records of an audit log, events for whoever listens, counts for its metrics."""

from __future__ import annotations

import logging
import threading
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from atoll.errors import RunError
from atoll.network.auditlog import NAME, AuditLog

__all__ = ["BUCKETS", "Histogram", "Notebook"]

Listener = Callable[[str, dict[str, Any]], object]

BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
"""Upper bounds of a histogram's classes, in seconds; beyond the last is one more."""

_OWED = 1000  # records that wait for room at most
_LOG = logging.getLogger(__name__)


class Histogram:
    """How often something took how long."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.sum = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.sum += seconds


class Notebook:
    """Where a coordinator writes down who did what. Any thread may call.

    Args:
        place: the coordinator's directory.
        run: its run's name.

    Raises RunError as `AuditLog` does.
    """

    def __init__(self, place: Path, run: str) -> None:
        self.log = AuditLog(place / NAME, run)
        self.listeners: list[Listener] = []
        """Hear of every record once it is written; and of what `tell` tells."""
        self.answers: Counter[str] = Counter()
        """Answers by what became of them: "accepted", or a word for why they were refused."""
        self.refusals: Counter[str] = Counter()
        """Requests that were refused, by the word of the `Problem`."""
        self.received = self.sent = 0
        """Bytes of bodies."""
        self.phases: defaultdict[str, Histogram] = defaultdict(Histogram)
        self.epsilon: float | None = None
        self._owed: list[tuple[str, dict[str, Any]]] = []
        self._paused = False
        self._lock = threading.Lock()

    def write(self, event: str, /, **facts: Any) -> None:
        """Write a record: it is on the disk when this returns.  Raises RunError where it cannot be."""
        if self._owed:
            with self._lock:
                while self._owed:
                    owed, said = self._owed[0]
                    self.log.write(owed, **said)
                    self._owed.pop(0)
        self.log.write(event, **facts)
        self.tell(event, **facts)

    def note(self, event: str, /, **facts: Any) -> None:
        """Write a record; where there is no room for it now, before whatever comes next."""
        try:
            self.write(event, **facts)
        except RunError as error:
            _LOG.warning("%s (%s is owed)", error.message, event)
            with self._lock:
                if len(self._owed) < _OWED:
                    self._owed.append((event, facts))
            self.tell(event, **facts)

    def tell(self, event: str, /, **facts: Any) -> None:
        """Tell the listeners only."""
        for listener in self.listeners:
            listener(event, facts)

    def state(self, state: str) -> None:
        """What the run is doing has changed; pauses are written down."""
        paused = "paused" in state
        if paused != self._paused:
            self._paused = paused
            self.note("run-paused" if paused else "run-goes-on", state=state)
        else:
            self.tell("state", state=state)

    def close(self) -> None:
        """Let others have the log."""
        self.log.close()
