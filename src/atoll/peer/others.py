"""The other peers, as one knows them, and its lines to them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from atoll.parties.framed import Address, Secured
from atoll.parties.link import PartyError
from atoll.peer.line import PATIENCE, Line
from atoll.peer.words import Word

__all__ = ["Lines", "Other", "ended_of"]

T = TypeVar("T")


@dataclass
class Other:
    """What a peer knows of another one.

    Attributes:
        address: where it listens, None as long as nobody has said so.
        begins: the first round in which it takes part, or does so again.
        round: the round that it was in when it was last heard.
        gone: whether nobody waits for it any more.
        met: whether it was ever heard.
        sent, received: bytes of models, to it and from it.
        heard: the last round of which its model came.
        key: its public key, by which masks are agreed on; empty where there are none.
        sought: since when it is looked for to have that, on the loop's clock; 0 where it is not.
    """

    address: Address | None = None
    begins: int = 1
    round: int = 0
    gone: bool = False
    met: bool = False
    sent: int = 0
    received: int = 0
    heard: int = 0
    key: bytes = b""
    sought: float = 0.0
    line: Line | None = field(default=None, repr=False)


class Lines:
    """The connections to others on which this peer asks; one to each, opened when it is wanted."""

    def __init__(self, name: str, others: dict[str, Other], secured: Secured | None) -> None:
        self.name, self.others, self.secured = name, others, secured

    async def to(self, name: str) -> Line:
        """The connection to another one.  Raises one of GONE."""
        other = self.others[name]
        if other.line is None:
            if other.address is None:
                raise PartyError(f"nobody has said where {name} listens")
            line = await Line.to(other.address, self.name, self.secured)
            if line.name != name:
                await line.close()
                raise PartyError(f"at {other.address} is {line.name}, and not {name}")
            return await self._settled(name, line)
        return other.line

    async def ask(
        self, name: str, word: Word, body: bytes = b"", *, most: int, patience: float = PATIENCE
    ) -> tuple[Word, bytes]:
        """The answer to a question, and its body of at most so many bytes.  Raises one of GONE."""
        line = await self.to(name)
        try:
            return await line.ask(word, body, most=most, patience=patience)
        except asyncio.CancelledError:  # the answer would be taken for that to the next question
            await self.drop(name)
            raise

    async def _settled(self, name: str, line: Line) -> Line:
        """The one line to another one that is kept, where two were opened at a time."""
        other = self.others[name]
        if other.line is not None:
            await line.close()
        else:
            other.line = line
        return other.line

    async def drop(self, name: str) -> None:
        line, self.others[name].line = self.others[name].line, None
        if line is not None:
            await line.close()

    async def stranger(self, where: Address) -> str | None:
        """Who listens there, None for nobody of this run; the line to it is kept.  Raises one of GONE."""
        line = await Line.to(where, self.name, self.secured)
        found = self.others.get(line.name)
        if found is None or found.line is not None:
            await line.close()
            return None
        found.line, found.address = line, where
        return line.name


async def ended_of(works: Sequence[Coroutine[Any, Any, T | None]], all_or_none: bool) -> dict[int, T | None]:
    """What these came to, by place, at the same time; where it is all or none, only those that ended before the first
    that came to nothing."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        for task in asyncio.as_completed(tasks):
            if await task is None and all_or_none:
                break
    finally:
        for one in tasks:
            one.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return {at: one.result() for at, one in enumerate(tasks) if not one.cancelled()}
