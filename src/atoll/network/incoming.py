"""An answer as it comes in: hashed, and taken by the disk, beside the event loop while the rest of it comes."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["Incoming"]

_STEP = 1 << 20
"""Bytes that are worth a look by another thread."""

_READ = 1 << 18
"""Bytes that are read at a time, into the same room: it stays in the processor's cache."""

_BEHIND = 1 << 25
"""Bytes that are worth a sync, so that little is left to wait for at the end."""


class Incoming:
    """The file of an answer that is arriving.

    Pieces are written as they come, and none is held: others read them from the file. Of a small answer nothing is done
    before `ended`, which its caller runs beside the event loop anyway.

    Args:
        path: where it is gathered; what is there already is its beginning.

    `size` are the bytes that have come.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream = path.open("a+b", buffering=0)
        self.size = self._stream.seek(0, os.SEEK_END)
        self._sha256, self._hashed, self._synced = hashlib.sha256(), 0, self.size
        self._hashing: asyncio.Future[Any] | None = None
        self._syncing: asyncio.Future[Any] | None = None

    def take(self, piece: bytes) -> None:
        """Write the next bytes.  Raises OSError where they cannot be."""
        left = memoryview(piece)
        while left:
            written = self._stream.write(left)
            left, self.size = left[written:], self.size + written
        if self.size - self._hashed >= _STEP and (self._hashing is None or self._hashing.done()):
            self._hashing = self._beside(self._hash, self.size, before=self._hashing)
        if self.size - self._synced >= _BEHIND and (self._syncing is None or self._syncing.done()):
            self._syncing, self._synced = self._beside(self.sync, before=self._syncing), self.size

    @staticmethod
    def _beside(
        action: Callable[..., object], *given: Any, before: asyncio.Future[Any] | None = None
    ) -> asyncio.Future[Any]:
        """Do it in another thread.  Raises what came of the time before."""
        if before is not None:
            before.result()
        return asyncio.ensure_future(asyncio.to_thread(action, *given))

    def _hash(self, upto: int) -> None:
        handle, room = self._stream.fileno(), memoryview(bytearray(min(_READ, upto - self._hashed)))
        while self._hashed < upto:
            found = os.preadv(handle, [room[: upto - self._hashed]], self._hashed)
            if not found:
                raise OSError(errno.EIO, f"{self.path} has lost its end")
            self._sha256.update(room[:found])
            self._hashed += found

    async def caught_up(self) -> None:
        """Wait until nobody looks at it any more.  Raises OSError where the disk has failed."""
        for each in (self._hashing, self._syncing):
            if each is not None:
                await asyncio.shield(each)  # whatever becomes of who waits, its thread goes on

    def ended(self) -> str:
        """The SHA-256 of all. To be called once nobody looks at it.  Raises OSError."""
        self._hash(self.size)
        return self._sha256.hexdigest()

    def sync(self) -> None:
        """What was written before lasts through a power cut when this returns.  Raises OSError."""
        os.fsync(self._stream.fileno())

    async def close(self) -> None:
        """Let go of the file, once nobody looks at it."""
        try:
            with contextlib.suppress(OSError):
                await self.caught_up()
        finally:
            self._stream.close()
