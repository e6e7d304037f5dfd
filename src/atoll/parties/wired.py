"""Parties in processes of their own: one connection for each pair, mutual TLS, or plain on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from atoll.errors import AtollError, ConfigError
from atoll.parties.framed import (
    LOOPBACK,
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
from atoll.parties.link import Link, PartyError, Pipe
from atoll.parties.transcript import Transcript

__all__ = ["meet"]

_AHEAD = 1 << 31  # bytes that may wait to be read by a role
_PARTING = 5.0  # seconds for last words to go
_AGAIN = 0.2  # seconds between two tries to reach somebody who does not listen yet


class _Wire:
    """The way to and from one party. What comes is read as it comes, so that two who both send do not block."""

    def __init__(self, other: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.other, self._reader, self._writer = other, reader, writer
        self._come: deque[tuple[bytes, bytes]] = deque()
        self._ahead = 0
        self._over: str | None = None
        self._news = asyncio.Condition()
        self._reading = asyncio.create_task(self._read())

    async def put(self, head: bytes, body: bytes) -> None:
        try:
            self._writer.write(framed(head, len(body)))
            self._writer.write(body)
            await self._writer.drain()
        except (OSError, ssl.SSLError):
            raise PartyError(f"{self.other} is gone") from None

    async def get(self) -> tuple[bytes, bytes]:
        async with self._news:
            await self._news.wait_for(lambda: self._come or self._over)
            if not self._come:
                raise PartyError(f"{self.other} is gone: {self._over}")
            head, body = self._come.popleft()
            self._ahead -= len(body)
            self._news.notify_all()
        return head, body

    async def _read(self) -> None:
        why = "the connection has ended"
        try:
            while True:
                head, body = await frame(self._reader)
                async with self._news:
                    await self._news.wait_for(lambda: self._ahead < _AHEAD)
                    self._come.append((head, body))
                    self._ahead += len(body)
                    self._news.notify_all()
        except BadFrame as error:
            why = str(error)
        except (OSError, EOFError, ssl.SSLError):
            pass
        async with self._news:
            self._over = why
            self._news.notify_all()

    async def close(self) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await ended(self._writer, _PARTING)


@asynccontextmanager
async def meet(
    name: str,
    addresses: Mapping[str, Address | None],
    secured: Secured | None,
    transcript: Transcript | None = None,
    patience: float | None = 600.0,
) -> AsyncIterator[Link]:
    """Inside, this party has links to all others. Of each pair the one that is named first listens.

    A failure inside is told to the others; so is theirs to this party.

    Args:
        addresses: where each party listens, in the order that all have alike; None for the last, whom nobody calls.
        secured: TLS; None sends in the clear, which goes only to this machine.
        patience: seconds to wait for the others to come, and for each message.

    Raises ConfigError for plain text to other machines, PartyError where others do not come, or are not who they say.
    """
    names = list(addresses)
    place = names.index(name)
    if secured is None:
        far = [str(each) for each in addresses.values() if each is not None and each.host not in LOOPBACK]
        if far:
            raise ConfigError(
                f"{far[0]} is another machine, and plain text stays on this one", hint="leave --plain out"
            )
    wires: dict[str, _Wire] = {}
    try:
        async with asyncio.timeout(patience):
            await _gather(name, names, place, addresses, secured, wires)
    except TimeoutError:
        missing = [each for each in names if each != name and each not in wires]
        await _closed(wires)
        raise PartyError(f"{', '.join(missing)} did not come within {patience:g} s",
                         hint="every party runs atoll vertical join with the same file") from None  # fmt: skip
    except BaseException:
        await _closed(wires)
        raise
    pipes: dict[str, Pipe] = {each: wires[each] for each in names if each != name}
    link = Link(name, pipes, transcript, patience)
    try:
        yield link
    except BaseException as error:
        await link.end(error)
        raise
    finally:
        await _closed(wires)


async def _closed(wires: Mapping[str, _Wire]) -> None:
    await asyncio.gather(*(wire.close() for wire in wires.values()))


async def _gather(
    name: str,
    names: Sequence[str],
    place: int,
    addresses: Mapping[str, Address | None],
    secured: Secured | None,
    wires: dict[str, _Wire],
) -> None:
    """Call those before, and wait for those after."""
    failed: list[AtollError] = []
    come = asyncio.Event()
    later = names[place + 1 :]
    answering: set[asyncio.Task[None]] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        answering.add(task)
        task.add_done_callback(answering.discard)
        try:
            other = await introduced(name, reader, writer, secured)
            if other not in later or other in wires:
                raise PartyError(f"{other} called, and is not expected here (again)")
            await greet(name, writer)
        except (AtollError, OSError, EOFError, BadFrame, ssl.SSLError) as error:
            await ended(writer)
            if isinstance(error, PartyError):
                failed.append(error)
                come.set()
            return
        except asyncio.CancelledError:  # its end, and asyncio would tell of it as a failure
            with contextlib.suppress(asyncio.CancelledError):
                await ended(writer)
            return
        wires[other] = _wire(other, reader, writer)
        come.set()

    server = None
    if later:
        where = addresses[name]
        if where is None:
            raise ConfigError(
                f"[party.{name}] has no address, and {later[0]} calls it", hint='address = "HOST:PORT"'
            )
        try:
            server = await asyncio.start_server(
                answer, where.host, where.port, ssl=None if secured is None else secured.server
            )
        except OSError as error:
            raise ConfigError(f"{name} cannot listen at {where}: {error.strerror or error}") from None
    try:
        for other in names[:place]:
            wires[other] = await _called(name, other, addresses[other], secured)
        while len(wires) < len(names) - 1:
            if failed:
                raise failed[0]
            come.clear()
            await come.wait()
    finally:
        if server is not None:
            server.close()
        for task in tuple(answering):  # who called, and did not say who it is before all others were there
            task.cancel()
        await asyncio.gather(*answering, return_exceptions=True)


async def _called(name: str, other: str, where: Address | None, secured: Secured | None) -> _Wire:
    if where is None:
        raise ConfigError(
            f"[party.{other}] has no address, and {name} calls it", hint='address = "HOST:PORT"'
        )
    context = None if secured is None else secured.client
    while True:
        try:
            # Who is there is told by its certificate's name, not by that of the machine.
            reader, writer = await asyncio.open_connection(
                where.host, where.port, ssl=context, server_hostname=None if context is None else where.host
            )
        except ssl.SSLError as error:
            raise PartyError(f"no secure connection to {other} at {where}: {error.reason or error}") from None
        except OSError:
            await asyncio.sleep(_AGAIN)  # it may start later
            continue
        try:
            await greet(name, writer)
            found = await introduced(name, reader, writer, secured)
            if found != other:
                raise PartyError(f"at {where} is {found}, and {other} is expected there")
        except (OSError, EOFError, BadFrame, ssl.SSLError):
            await ended(writer)
            raise PartyError(f"{other} at {where} refused the connection",
                             hint="certificates of one authority, and names as in the file?") from None  # fmt: skip
        except BaseException:
            await ended(writer)
            raise
        return _wire(other, reader, writer)


def _wire(other: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> _Wire:
    watched(writer)
    return _Wire(other, reader, writer)
