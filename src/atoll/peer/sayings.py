"""What a peer has said, for as long as somebody may ask for it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from atoll.errors import AtollError
from atoll.tensors import Record

__all__ = ["BEFORE", "Plain", "Saying", "Sayings", "Spoken", "WithheldError"]

BEFORE = 0
"""The number of what is said before the first round. It is kept to the end."""

_KEPT = 2  # rounds of which a peer still knows what it said, whoever has fetched it
_MOST = 64  # and of which it does for those who have not


class WithheldError(AtollError):
    """Who asks is not told, and why; or not yet, where these others are not known well enough (`until`)."""

    def __init__(self, message: str, until: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.until = tuple(until)


class Spoken(Protocol):
    """What a peer says in a round, as it is told to who asks."""

    async def to(self, name: str, whole: bool, asked: bytes) -> bytes:
        """What this one is told, whose question has that body.

        Args:
            whole: whether by itself, and not as what it differs by from what was said before.

        Raises WithheldError.
        """
        ...

    def held(self) -> Record:
        """What it can be said from once more, by one that comes back."""
        ...


@dataclass(frozen=True)
class Plain:
    """The same for everybody: what has changed since it spoke before, and the whole, where that is another thing."""

    body: bytes
    whole: bytes | None = None

    async def to(self, name: str, whole: bool, asked: bytes) -> bytes:
        return self.whole if whole and self.whole is not None else self.body

    def held(self) -> Record:
        return Record(body=_tensor(self.body), whole=_tensor(self.body if self.whole is None else self.whole))

    @staticmethod
    def of(held: Record) -> Plain:
        """What was `held`."""
        return Plain(held.body.numpy().tobytes(), held.whole.numpy().tobytes())


def _tensor(body: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(body), dtype=torch.uint8)


@dataclass
class Saying:
    """What was said in a round: since which round, what it is, and who has not fetched it."""

    since: int
    spoken: Spoken
    due: set[str]


class Sayings:
    """What a peer has said, round by round; `spoken` is the last one."""

    def __init__(self) -> None:
        self.spoken = 0
        self._said: dict[int, Saying] = {}
        self._news = asyncio.Condition()

    async def put(self, number: int, to: Sequence[str], spoken: Spoken, gone: Callable[[str], bool]) -> None:
        """Say something; what nobody is left to fetch of earlier rounds is forgotten."""
        async with self._news:
            self._said[number] = Saying(self.spoken, spoken, {*to})
            self.spoken = max(self.spoken, number)
            for old in [each for each in self._said if BEFORE < each <= number - _KEPT]:
                if old <= number - _MOST or all(map(gone, self._said[old].due)):
                    del self._said[old]
            self._news.notify_all()

    def unheard(self, gone: Callable[[str], bool]) -> dict[int, Saying]:
        """By number, what was said and somebody has not fetched who may still ask."""
        return {
            number: each
            for number, each in self._said.items()
            if number > BEFORE and any(not gone(name) for name in each.due)
        }

    def again(self, number: int, saying: Saying) -> None:
        """Say once more what was said before this one was broken off."""
        self._said[number] = saying

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
