"""All messages there are, and their bytes. The set is closed: nothing else is ever made from what comes in.

Clients are numbers, their positions among the sorted nodes. Who sends a message is what the transport says, and every
message carries the sid of its attempt.

    client                               server
    Keys            ◄── Invitation       0 advertise keys
    Boxes           ◄── Roster           1 share keys
    Masked          ◄── Inbox            2 masked input
    Confirmation    ◄── Survivors        3 consistency check (active)
    Shares          ◄── Confirmations    4 unmask (after Survivors, where the server is only curious)
"""

from __future__ import annotations

from typing import TypeAlias, TypeVar

import msgspec
import numpy as np

from atoll.channel.secagg.terms import Terms
from atoll.errors import CodecError

__all__ = [
    "Boxes", "Confirmation", "Confirmations", "FromClient", "FromServer", "Inbox", "Invitation", "Keys", "Masked",
    "Message", "Roster", "Shares", "Survivors", "from_client", "from_server", "members", "membership", "pack",
]  # fmt: skip


class Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=True):
    """Of one attempt."""

    sid: bytes


class Invitation(Message, frozen=True):
    """The terms, to all nodes."""

    terms: Terms


class Keys(Message, frozen=True):
    """A client's public keys for boxes and for masks (X25519), signed with its identity (Ed25519)."""

    client: int
    box: bytes
    mask: bytes
    signature: bytes


class Roster(Message, frozen=True):
    """The keys of a client's neighbours and its own."""

    keys: tuple[Keys, ...]


class Boxes(Message, frozen=True):
    """For each neighbour, shares of both secrets, encrypted for it."""

    boxes: dict[int, bytes]


class Inbox(Message, frozen=True):
    """What neighbours have put into boxes for a client."""

    boxes: dict[int, bytes]


class Masked(Message, frozen=True):
    """The masked update: numbers of 32 bits, little-endian."""

    values: bytes


class Survivors(Message, frozen=True):
    """Whose masked update is in the sum: one bit for each client, the first the lowest of the first byte."""

    members: bytes


class Confirmation(Message, frozen=True):
    """A signature under the survivors that a client was told of."""

    signature: bytes


class Confirmations(Message, frozen=True):
    """Those of a client's neighbours and its own."""

    signatures: dict[int, bytes]


class Shares(Message, frozen=True):
    """Shares of the self-mask secrets of survivors, and of the mask keys of those lost. Nobody is in both."""

    survived: dict[int, bytes]
    lost: dict[int, bytes]


FromServer: TypeAlias = Invitation | Roster | Inbox | Survivors | Confirmations
FromClient: TypeAlias = Keys | Boxes | Masked | Confirmation | Shares

T = TypeVar("T")

_SERVERS: msgspec.msgpack.Decoder[FromServer] = msgspec.msgpack.Decoder(FromServer)
_CLIENTS: msgspec.msgpack.Decoder[FromClient] = msgspec.msgpack.Decoder(FromClient)


def pack(message: Message) -> bytes:
    """A message as bytes (msgpack)."""
    return msgspec.msgpack.encode(message)


def from_server(blob: bytes) -> FromServer:
    """A server's message. Raises CodecError for any other bytes."""
    return _read(blob, _SERVERS)


def from_client(blob: bytes) -> FromClient:
    """A client's message. Raises CodecError for any other bytes."""
    return _read(blob, _CLIENTS)


def _read(blob: bytes, decoder: msgspec.msgpack.Decoder[T]) -> T:
    try:
        return decoder.decode(blob)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise CodecError(f"this is no message of secure aggregation: {error}") from None


def membership(clients: set[int] | frozenset[int], n: int) -> bytes:
    """A set of clients as bits."""
    return sum(1 << client for client in clients).to_bytes(-(-n // 8), "little")


def members(bits: bytes, n: int) -> frozenset[int]:
    """The clients whose bits are set. ValueError for another length than n clients have, or bits beyond them."""
    if len(bits) != -(-n // 8) or int.from_bytes(bits, "little") >> n:
        raise ValueError(f"these are no bits of {n} clients")
    return frozenset(np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little").nonzero()[0].tolist())
