"""What peers say to each other: a closed set of messages, each a frame (`atoll.parties.framed`)."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from atoll.errors import CodecError
from atoll.parties.framed import BadFrame

__all__ = ["Absent", "Here", "Known", "Later", "No", "Said", "Wanted", "Word", "opened", "packed"]


class Here(msgspec.Struct, tag="here", frozen=True, forbid_unknown_fields=True):
    """A peer presents itself. Its body are the addresses that it knows (`Known`)."""

    run: str
    """A hash of what all peers of a run must have alike."""
    begins: int
    """The first round in which it takes part, or does so again."""
    round: int
    """The round that it is in."""
    gone: bool
    """Whether it had given the other up."""


class There(msgspec.Struct, tag="there", frozen=True, forbid_unknown_fields=True):
    """The answer to it; the body as well."""

    begins: int
    round: int
    gone: bool


class Wanted(msgspec.Struct, tag="wanted", frozen=True, forbid_unknown_fields=True):
    """What did you say in this round?"""

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
    """The other has no place in this run, and why."""

    why: str


class Known(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where peers listen, by name."""

    addresses: dict[str, str]


Word = Here | There | Wanted | Said | Later | Absent | No
_WORDS: msgspec.json.Decoder[Word] = msgspec.json.Decoder(Word)
K = TypeVar("K")


def packed(word: Word | Known) -> bytes:
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
