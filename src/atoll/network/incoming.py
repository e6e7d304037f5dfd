"""An answer as it comes in: written down and hashed beside the event loop, while the next of it comes."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

__all__ = ["Incoming"]

_BATCH = 1 << 20
"""Bytes that are written and hashed at a time; a second batch gathers meanwhile."""

_BEHIND = 1 << 25
"""Bytes from which on the disk begins to take what has come, so that little is left to wait for at the end."""


class Incoming:
    """The file of an answer that is arriving.

    Of a small one nothing happens before `ended`, which its caller runs beside the event loop anyway.

    Args:
        path: where it is gathered; what is there already is its beginning.

    `size` are the bytes that have come. Raises OSError where they cannot be written, from any call.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream = path.open("ab", buffering=0)
        self.size = self._before = self._stream.tell()
        self._hash = hashlib.sha256()
        self._batch: list[bytes] = []
        self._waits = self._unsynced = 0  # bytes
        self._writing: asyncio.Future[None] | None = None
        self._syncing: asyncio.Future[None] | None = None

    async def take(self, piece: bytes) -> None:
        """The next bytes; waits where two batches are there that have not been written."""
        self._batch.append(piece)
        self.size += len(piece)
        self._waits += len(piece)
        if self._waits >= _BATCH:
            await self._written()
            batch, self._batch, self._waits = self._batch, [], 0
            self._writing = asyncio.ensure_future(asyncio.to_thread(self._write, batch))

    async def _written(self) -> None:
        """Wait for the batch that is being written, and have the disk take what there is."""
        if self._writing is not None:
            await asyncio.shield(self._writing)  # whatever becomes of who waits, its thread goes on
            self._writing = None
        if self._unsynced >= _BEHIND and (self._syncing is None or self._syncing.done()):
            await self._synced()
            self._unsynced = 0
            self._syncing = asyncio.ensure_future(asyncio.to_thread(os.fsync, self._stream.fileno()))

    async def _synced(self) -> None:
        if self._syncing is not None:
            await asyncio.shield(self._syncing)
            self._syncing = None

    def _write(self, batch: list[bytes]) -> None:
        if self._before:  # it came before a line broke
            with self.path.open("rb") as stream:
                while self._before:
                    found = stream.read(min(self._before, _BATCH))
                    self._hash.update(found)
                    self._before -= len(found)
        for piece in batch:
            left = memoryview(piece)
            while left:
                left = left[self._stream.write(left) :]
            self._hash.update(piece)
            self._unsynced += len(piece)

    async def caught_up(self) -> None:
        """Wait until nothing is being written any more."""
        await self._written()
        await self._synced()

    def ended(self) -> str:
        """Write the last of it; the SHA-256 of all. To be called once nothing is being written."""
        batch, self._batch = self._batch, []
        self._write(batch)
        return self._hash.hexdigest()

    def sync(self) -> None:
        """What has been written lasts through a power cut when this returns."""
        os.fsync(self._stream.fileno())

    async def close(self) -> None:
        """Write what has come; whatever happens, the file is let go of."""
        try:
            await self.caught_up()
            if self._batch:
                await asyncio.to_thread(self.ended)
        finally:
            self._stream.close()
