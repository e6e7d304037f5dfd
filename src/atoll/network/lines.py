"""Connections that nobody uses: ended in time, so that there are always some for those who work."""

from __future__ import annotations

import asyncio
import resource
import time
from typing import Any

__all__ = ["Lines", "most"]

QUIET = 10.0
"""Seconds in which a connection that has just been made must have sent a whole request."""

_SPARE = 64
"""Open files that connections do not get: journal, bodies, the run's."""


def most() -> int:
    """Connections that there may be: what the process may open, without what it needs for itself."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(16, min(soft - _SPARE, soft // 2) if soft < 1 << 20 else 1 << 16)


class Lines:
    """Looks after the connections of a server. aiohttp ends those that idle between requests; it has no time limit for
    the first request, nor any number of connections.

    A connection is at work from a request's header to the end of its answer. Others are ended after `QUIET` seconds
    before their first request, and at once, the longest idle first, where there are more than `most`.
    """

    def __init__(self, server: Any) -> None:
        self._server = server
        self._since: dict[Any, float] = {}
        self._heard: set[Any] = set()
        self._working: dict[Any, int] = {}

    def begin(self, line: Any) -> None:
        """A request's header has come on this connection."""
        self._heard.add(line)
        self._working[line] = self._working.get(line, 0) + 1

    def end(self, line: Any) -> None:
        """The request is answered."""
        self._since[line] = time.monotonic()
        self._working[line] = self._working.get(line, 1) - 1
        if self._working[line] <= 0:
            del self._working[line]

    async def watch(self) -> None:
        """End what should be ended, for ever."""
        while True:
            self.sweep()
            await asyncio.sleep(0.5)

    def sweep(self) -> None:
        now, open_ = time.monotonic(), set(self._server.connections)
        for known in (self._since, self._working):
            for line in known.keys() - open_:
                del known[line]
        self._heard &= open_
        idle = sorted(
            ((self._since.setdefault(line, now), line in self._heard, id(line), line) for line in open_),
            key=lambda each: (each[1], each[0], each[2]),  # those that never said anything first
        )
        idle = [each for each in idle if each[3] not in self._working]
        excess = len(open_) - most()
        for at, (since, heard, _, line) in enumerate(idle):
            if at < excess or (not heard and now - since > QUIET):
                line.force_close()
