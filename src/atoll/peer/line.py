"""A peer's connection to another one, on which it asks."""

from __future__ import annotations

import asyncio
import ssl

from atoll.parties.framed import (
    Address,
    BadFrame,
    Secured,
    ended,
    frame,
    framed,
    greet,
    introduced,
    watched,
)
from atoll.parties.link import PartyError
from atoll.peer.words import Word, opened, packed

__all__ = ["GONE", "PATIENCE", "Line"]

GONE = (OSError, EOFError, ssl.SSLError, TimeoutError, BadFrame, PartyError)
"""What a connection on which nothing comes any more raises."""

PATIENCE = 10.0  # seconds for a connection to be there


class Line:
    """One connection; questions are asked one after the other.

    `name` is who is at the other end, by its certificate where there is one.
    """

    def __init__(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.name, self._reader, self._writer = name, reader, writer
        self._lock = asyncio.Lock()

    @staticmethod
    async def to(where: Address, own: str, secured: Secured | None) -> Line:
        """Call whoever listens there.  Raises one of GONE."""
        context = None if secured is None else secured.client
        async with asyncio.timeout(PATIENCE):
            # Who is there is told by its certificate's name, not by that of the machine.
            reader, writer = await asyncio.open_connection(
                where.host, where.port, ssl=context, server_hostname=None if context is None else where.host
            )
            try:
                await greet(own, writer)
                name = await introduced(own, reader, writer, secured)
            except BaseException:
                await ended(writer)
                raise
        watched(writer)
        return Line(name, reader, writer)

    async def ask(
        self, word: Word, body: bytes = b"", *, most: int, patience: float = PATIENCE
    ) -> tuple[Word, bytes]:
        """The answer to a question, and its body of at most so many bytes.  Raises one of GONE."""
        async with self._lock:
            head = packed(word)
            self._writer.write(framed(head, len(body)))
            self._writer.write(body)
            await self._writer.drain()
            async with asyncio.timeout(patience):
                found, came = await frame(self._reader, most)
        return opened(found), came

    async def close(self) -> None:
        await ended(self._writer, 1.0)
