"""A party's links to the others: messages of known kinds, in their order, checked before anybody looks at them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Protocol

import msgspec

from atoll import codec
from atoll.codec import Limits
from atoll.errors import AtollError, CodecError, DataError, RunError
from atoll.parties.kind import Kind
from atoll.parties.transcript import Transcript
from atoll.tensors import Record

__all__ = ["VERSION", "Link", "PartyError", "Pipe"]

VERSION = 1
"""Of the framing; parties of different versions part at once."""

_HEAD = 1 << 12  # most bytes of a message's head
_PARTING = 5.0  # seconds for last words


class PartyError(RunError):
    """Another party is gone, or says what it must not."""


class Pipe(Protocol):
    """The way to and from one other party: whole messages, in order."""

    async def put(self, head: bytes, body: bytes) -> None:
        """Send one.  Raises PartyError where nobody is there any more."""
        ...

    async def get(self) -> tuple[bytes, bytes]:
        """The next one.  Raises PartyError where none will come."""
        ...


class _Head(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What stands before a message: its number among those from this party to that one, and its kind.

    The kind "!" is a party's last word: why it ends (`why`), as one of Atoll's errors says it.
    """

    number: int
    kind: str
    under: str | None = None
    ciphertexts: int = 0
    why: str = ""


class Link:
    """What one role of a protocol sees of the others.

    Each pair of parties has messages in one order both ways: one that is not of the kind that is asked for, or not the
    next, is refused by name, and so is one of another form.

    Args:
        name: who this is.
        pipes: the ways to the others, by their names.
        patience: seconds to wait for a message; None for ever.
    """

    def __init__(
        self,
        name: str,
        pipes: Mapping[str, Pipe],
        transcript: Transcript | None = None,
        patience: float | None = None,
    ) -> None:
        self.name, self.patience = name, patience
        self.transcript = Transcript() if transcript is None else transcript
        self._pipes = dict(pipes)
        self._sent = dict.fromkeys(pipes, 0)
        self._received = dict.fromkeys(pipes, 0)

    @property
    def others(self) -> tuple[str, ...]:
        """The names of the other parties."""
        return tuple(self._pipes)

    async def send(
        self, to: str, kind: Kind, record: Record, under: str | None = None, ciphertexts: int = 0
    ) -> None:
        """Say something to another party.

        Args:
            under: the cipher of what is in it ("ou-2048"), where there is one.
            ciphertexts: how many are in it.

        Raises CodecError where the record does not fit the kind, PartyError where the other is gone.
        """
        kind.check(record, self.name)
        head = msgspec.json.encode(_Head(self._sent[to], kind.name, under, ciphertexts))
        body = codec.encode(record)
        if len(body) > kind.limit:
            raise CodecError(f"{kind.name} would have {len(body)} bytes, and the limit is {kind.limit}")
        self._sent[to] += 1
        self.transcript.add(self.name, to, kind, record, len(head) + len(body), under, ciphertexts)
        try:
            await self._pipes[to].put(head, body)
        except PartyError:
            await self._last_word(to)
            raise

    async def receive(self, sender: str, kind: Kind) -> Record:
        """The next message of another party, which must be of this kind.

        Raises PartyError where it is another one, or none comes; CodecError where its form is another.
        """
        try:
            async with asyncio.timeout(self.patience):
                blob, body = await self._pipes[sender].get()
        except TimeoutError:
            raise PartyError(
                f"{sender} has not sent {kind.name} within {self.patience:g} s",
                hint="is it still running? patience sets how long to wait",
            ) from None
        head = _read(blob, sender)
        due = self._received[sender]
        if head.kind != kind.name or head.number != due:
            raise PartyError(
                f"{sender} sent {head.kind} (its message {head.number}), and {kind.name} (message {due}) is due",
                hint="both sides must run the same version with the same settings",
            )
        if len(body) > kind.limit:
            raise PartyError(f"{kind.name} of {sender} has {len(body)} bytes, and the limit is {kind.limit}")
        record = codec.decode(body, limits=Limits(nbytes=kind.limit))
        kind.check(record, sender)
        self._received[sender] += 1
        self.transcript.add(
            sender, self.name, kind, record, len(blob) + len(body), head.under, head.ciphertexts
        )
        return record

    async def _last_word(self, other: str) -> None:
        """Raises PartyError with what a party that is gone said before, where it said so."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PARTING):
                while True:
                    _read((await self._pipes[other].get())[0], other)

    async def end(self, error: BaseException) -> None:
        """Tell all others that this party ends, and why, but nothing of its data; whoever is gone is not told."""
        message = error.message if isinstance(error, AtollError) else type(error).__name__
        if isinstance(error, DataError):
            message = "its data cannot be used, as it says itself"
        for to, pipe in self._pipes.items():
            head = msgspec.json.encode(_Head(self._sent[to], "!", why=message[: _HEAD // 4]))
            try:
                async with asyncio.timeout(_PARTING):
                    await pipe.put(head, b"")
            except (AtollError, OSError, TimeoutError):
                continue


def _read(blob: bytes, sender: str) -> _Head:
    """What stands before a message.  Raises PartyError where it cannot be read, or is the sender's last word."""
    try:
        head = msgspec.json.decode(blob, type=_Head)
    except msgspec.MsgspecError:
        raise PartyError(f"{sender} sent a message whose head cannot be read") from None
    if head.kind == "!":
        raise PartyError(f"{sender} has ended: {head.why}")
    return head
