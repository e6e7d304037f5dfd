"""Connections between two who know each other by name: who is at the other end, frames, and who is gone."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from atoll.errors import ConfigError
from atoll.parties.link import VERSION, PartyError

__all__ = [
    "LOOPBACK",
    "Address",
    "BadFrame",
    "Secured",
    "ended",
    "frame",
    "framed",
    "greet",
    "introduced",
    "watched",
]

LOOPBACK = ("127.0.0.1", "::1", "localhost")

_FRAME = struct.Struct("<IQ")  # bytes of the head, and of the body
_HEAD = 1 << 12
_MOST = 1 << 30
_SILENT = 15  # seconds without a sign of the other machine after which the system looks whether it is there


@dataclass(frozen=True)
class Address:
    """Where a party listens."""

    host: str
    port: int

    @staticmethod
    def parse(text: str) -> Address:
        """From "host.example.org:9000".  Raises ConfigError."""
        host, _, port = text.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ConfigError(f"{text!r} is no address", hint="such as bank.example.org:9000")
        return Address(host.strip("[]"), int(port))

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Secured:
    """TLS on both sides: the contexts, and who is at the other end by its certificate.

    Attributes:
        server, client: for who listens, and who calls; both ask for a certificate of the common authority.
        named: the name in a certificate (DER), None where it has none.
    """

    server: ssl.SSLContext
    client: ssl.SSLContext
    named: Callable[[bytes], str | None]


class _Hello(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who opens a connection, and what it speaks."""

    name: str
    version: int


class BadFrame(Exception):
    """A frame that nobody would send."""


async def frame(reader: asyncio.StreamReader, most: int = _MOST) -> tuple[bytes, bytes]:
    head, body = _FRAME.unpack(await reader.readexactly(_FRAME.size))
    if head > _HEAD or body > most:
        raise BadFrame(f"it announced a message of {head + body} bytes, and the limit is {most}")
    return await reader.readexactly(head), await reader.readexactly(body)


def framed(head: bytes, body_size: int) -> bytes:
    """What stands on the wire before a body of so many bytes."""
    return _FRAME.pack(len(head), body_size) + head


async def greet(name: str, writer: asyncio.StreamWriter) -> None:
    """Say who this is."""
    hello = msgspec.json.encode(_Hello(name, VERSION))
    writer.write(framed(hello, 0))
    await writer.drain()


async def introduced(
    name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, secured: Secured | None
) -> str:
    """Who is at the other end, as it says and, under TLS, as its certificate says."""
    blob, _ = await frame(reader, 0)
    try:
        hello = msgspec.json.decode(blob, type=_Hello)
    except msgspec.MsgspecError:
        raise PartyError(f"somebody who called {name} does not speak like a party") from None
    if hello.version != VERSION:
        raise PartyError(
            f"{hello.name} speaks version {hello.version} of the protocol, and {name} version {VERSION}",
            hint="install the same version everywhere",
        )
    if secured is not None:
        certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        known = None if certificate is None else secured.named(certificate)
        if known != hello.name:
            raise PartyError(f"{hello.name} has a certificate of {known or 'nobody'}")
    return hello.name


async def ended(writer: asyncio.StreamWriter, seconds: float = 0.0) -> None:
    """End a connection: what was written may still go for so long. Nothing of it is left when this returns."""
    writer.close()
    try:
        async with asyncio.timeout(seconds):
            await writer.wait_closed()
    except (OSError, TimeoutError):  # errors of TLS are OSErrors
        pass
    finally:
        writer.transport.abort()
    await asyncio.sleep(0)


def watched(writer: asyncio.StreamWriter) -> None:
    """Have the system notice when the other machine is gone."""
    found = writer.get_extra_info("socket")
    if found is not None:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for option, value in (("TCP_KEEPIDLE", _SILENT), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, option):
                found.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
