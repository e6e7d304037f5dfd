"""Whose turn it is: a thousand nodes that wait for a round are told of it one after the other, some at a time."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

__all__ = ["Turns"]

_LATE = 0.05
"""Seconds by which a timer that comes so late says that this process has had too much to do."""


class Turns:
    """Places for those who are served now, and a queue of those who come next. For one event loop, and no thread.

    Without it whoever asks something in between waits until all have been served: the loop takes what is ready in turn,
    and then everything is.

    A place is free again at `end`, or after `lease` seconds: who has not come back by then is training, is slow, or is
    gone, and no load. Where the timer itself is late nobody is taken for slow: the load is here.

    Args:
        most: places.
        lease: seconds; infinite: places are held until `end`.
    """

    def __init__(self, most: int = 16, lease: float = 0.25) -> None:
        self.most, self.lease = most, lease
        self._placed: OrderedDict[int, float] = OrderedDict()  # client -> since when
        self._queue: OrderedDict[int, asyncio.Future[None] | None] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Places that are taken."""
        return len(self._placed)

    async def take(self, client: int, seconds: float) -> bool:
        """Wait for a place, so long at most; whether the client has it.

        Where not, it stays where it is in the queue: a place that it gets meanwhile waits for it, as long as a lease.
        """
        if client in self._placed:
            return True
        loop = asyncio.get_running_loop()
        mine = loop.create_future()
        before = self._queue.get(client)
        if before is not None and not before.done():
            before.cancel()  # of a line that is dead
        self._queue[client] = mine
        self._go_on()
        try:
            async with asyncio.timeout(seconds):
                await mine
        except TimeoutError:
            if self._queue.get(client) is mine:
                self._queue[client] = None
            return client in self._placed
        return True

    def end(self, client: int) -> None:
        """The client has been served, or is gone."""
        if self._placed.pop(client, None) is not None:
            self._go_on()

    def _go_on(self) -> None:
        now = asyncio.get_running_loop().time()
        while self._queue and len(self._placed) < self.most:
            client, waits = self._queue.popitem(last=False)
            self._placed[client] = now
            if waits is not None and not waits.done():
                waits.set_result(None)
        if self._queue and self._timer is None and self.lease < float("inf"):
            self._watch()

    def _watch(self) -> None:
        """Look again when the oldest place has been held for a lease."""
        loop = asyncio.get_running_loop()
        oldest = next(iter(self._placed.values()), loop.time())
        due = max(oldest + self.lease, loop.time() + self.lease / 10)
        self._timer = loop.call_at(due, self._expire, due)

    def _expire(self, due: float) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        if now - due <= _LATE:
            for client, since in [*self._placed.items()]:
                if now - since < self.lease:
                    break
                del self._placed[client]
        self._go_on()
