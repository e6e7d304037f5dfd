"""What peers say to each other: a closed set of messages, each a frame (`atoll.parties.framed`)."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from atoll.errors import CodecError
from atoll.parties.framed import BadFrame

__all__ = [
    "Absent", "Among", "Here", "Known", "Later", "No", "Said", "There", "Wanted", "Word", "among", "known", "opened",
    "packed",
]  # fmt: skip


class Here(msgspec.Struct, tag="here", frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A peer presents itself. Its body are the addresses that it knows (`Known`)."""

    run: str
    """A hash of what all peers of a run must have alike."""
    begins: int
    """The first round in which it takes part, or does so again."""
    round: int
    """The round that it is in."""
    gone: bool
    """Whether it had given the other up."""
    key: bytes = b""
    """Its public key, by which two agree on masks; empty where there are none."""


class There(msgspec.Struct, tag="there", frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The answer to it; the body as well."""

    begins: int
    round: int
    gone: bool
    key: bytes = b""


class Wanted(msgspec.Struct, tag="wanted", frozen=True, forbid_unknown_fields=True):
    """What did you say in this round? Where there are masks, the body says in which sum it goes (`Among`)."""

    of: int
    round: int
    """The round that the asker is in."""
    whole: bool = False
    """Whether by itself, and not as what it differs by from what was said before."""


class Said(msgspec.Struct, tag="said", frozen=True, forbid_unknown_fields=True):
    """This, in the body: a record."""

    of: int
    round: int
    since: int = 0
    """The last round before, of which it said something; 0 where there is none."""


class Later(msgspec.Struct, tag="later", frozen=True, forbid_unknown_fields=True):
    """Nothing yet; ask again."""

    round: int


class Absent(msgspec.Struct, tag="absent", frozen=True, forbid_unknown_fields=True):
    """Nothing, and nothing will come: it was not there in that round, or it is long past."""

    begins: int
    round: int


class No(msgspec.Struct, tag="no", frozen=True, forbid_unknown_fields=True):
    """The other has no place in this run, or is not told what it asks for, and why."""

    why: str


class Known(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where peers listen, by name."""

    addresses: dict[str, str]


class Among(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who is asked for shares of one sum: public keys by name."""

    keys: dict[str, bytes]


Word = Here | There | Wanted | Said | Later | Absent | No
_WORDS: msgspec.json.Decoder[Word] = msgspec.json.Decoder(Word)
K = TypeVar("K")


def packed(word: Word | Known | Among) -> bytes:
    """A message as bytes."""
    return msgspec.json.encode(word)


def opened(head: bytes) -> Word:
    """A message.  Raises BadFrame for anything else."""
    try:
        return _WORDS.decode(head)
    except msgspec.MsgspecError as error:
        raise BadFrame(f"it sent no message of a peer: {error}") from None


def known(body: bytes) -> dict[str, str]:
    """The addresses in a body.  Raises CodecError."""
    try:
        return msgspec.json.decode(body, type=Known).addresses
    except msgspec.MsgspecError as error:
        raise CodecError(f"addresses of peers cannot be read: {error}") from None


def among(body: bytes) -> dict[str, bytes]:
    """Who is asked for shares, and their keys.  Raises CodecError."""
    try:
        return msgspec.json.decode(body, type=Among).keys
    except msgspec.MsgspecError as error:
        raise CodecError(f"whose shares are asked for cannot be read: {error}") from None
