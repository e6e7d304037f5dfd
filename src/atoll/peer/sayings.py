"""What a peer has said, for as long as somebody may ask for it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["Saying", "Sayings"]

_KEPT = 2  # rounds of which a peer still knows what it said, whoever has fetched it
_MOST = 64  # and of which it does for those who have not


@dataclass
class Saying:
    """What was said in a round: since which round, what changed, the whole, and who has not fetched it."""

    since: int
    body: bytes
    whole: bytes
    due: set[str]


class Sayings:
    """What a peer has said, round by round; `spoken` is the last one."""

    def __init__(self) -> None:
        self.spoken = 0
        self._said: dict[int, Saying] = {}
        self._news = asyncio.Condition()

    async def put(
        self, number: int, to: Sequence[str], body: bytes, whole: bytes | None, gone: Callable[[str], bool]
    ) -> None:
        """Say something; what nobody is left to fetch of earlier rounds is forgotten."""
        async with self._news:
            self._said[number] = Saying(self.spoken, body, body if whole is None else whole, {*to})
            self.spoken = number
            for old in [each for each in self._said if each <= number - _KEPT]:
                if old <= number - _MOST or all(map(gone, self._said[old].due)):
                    del self._said[old]
            self._news.notify_all()

    async def of(self, number: int, never: Callable[[int], bool], seconds: float) -> Saying | None:
        """What was said in a round; waits so long for it, unless it will never be there."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds), self._news:
                await self._news.wait_for(lambda: number in self._said or never(number))
        return self._said.get(number)

    async def changed(self) -> None:
        """Those who wait may wait for what never comes any more."""
        async with self._news:
            self._news.notify_all()

    def fetched(self, number: int, by: str) -> None:
        """Somebody has it."""
        if number in self._said:
            self._said[number].due.discard(by)

    def due(self, number: int) -> set[str]:
        """Who has not fetched what was said in a round."""
        return self._said[number].due if number in self._said else set()
