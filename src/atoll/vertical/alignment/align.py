"""Which rows parties have in common, found without showing any other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch

from atoll.errors import CodecError, ConfigError
from atoll.parties import Link
from atoll.tensors import Record
from atoll.vertical.alignment import curve, kept
from atoll.vertical.alignment.columns import Column, Scratch
from atoll.vertical.alignment.group import ECDH, group
from atoll.vertical.alignment.ids import MOST, Distinct, IntArray, Rows, distinct, encoded
from atoll.vertical.alignment.kept import Blinded
from atoll.vertical.alignment.kinds import HELLO, REPEATS
from atoll.vertical.alignment.power import Power
from atoll.vertical.alignment.ring import Ring
from atoll.vertical.alignment.spilled import Mixed

__all__ = ["Alignment", "Common", "Reveal", "align"]

Reveal = Literal["both", "guest", "count"]


@dataclass(frozen=True)
class Alignment:
    """How rows are matched; the same at all parties.

    Attributes:
        reveal: who learns which ids are common: "both" all parties, "guest" it alone, "count" nobody, only how many.
        fold: whether upper and lower case are one.
        session: a text that all parties know, such as a run's name: points of one session are no use in another.
        chunk: most ids of a message, and about how many are held in memory at a time; the others lie in files that
            end with the alignment (see `columns`).
        ecdh: who computes: "x25519", or "nacl", which makes points of names in constant time and takes three times as
            long.
    """

    reveal: Reveal = "both"
    fold: bool = False
    session: str = ""
    chunk: int = 1 << 16
    ecdh: ECDH = "x25519"

    def __post_init__(self) -> None:
        if self.reveal not in ("both", "guest", "count"):
            raise ConfigError(f"reveal = {self.reveal!r}", hint="it is both, guest or count")
        if self.ecdh not in get_args(ECDH):
            raise ConfigError(f"ecdh = {self.ecdh!r}", hint=f"it is {' or '.join(get_args(ECDH))}")
        if self.chunk < 1:
            raise ConfigError(f"chunk = {self.chunk} must be 1 at least")
        if len(self.session) > 256:
            raise ConfigError("session has more than 256 characters")

    @property
    def kept(self) -> str:
        """For which session, and in which group, a blinded set may be used again."""
        return f"{self.ecdh} {self.session}"


@dataclass(frozen=True)
class Common:
    """What a party learns.

    Attributes:
        rows: its own rows of the common ids, in the order that all have alike; None where it does not learn them.
        ids: how many ids are common; None where it does not learn that.
    """

    rows: IntArray | None
    ids: int | None


async def align(
    link: Link,
    ids: Sequence[str],
    parties: Sequence[str],
    options: Alignment = Alignment(),
    *,
    sample_ids: Sequence[str] | None = None,
    cache: Path | None = None,
    workers: int = 1,
) -> Common:
    """Private set intersection by Diffie-Hellman on Curve25519, of two parties or more, who follow the protocol and do
    not conspire.   Meadows 1986; Huberman, Franklin and Hogg 1999

    Each party makes points of its ids, raises them to a secret of its own and shuffles them; everybody's points go
    round until they are raised by all secrets (see `Ring`), and equal points are equal ids. The common order is that of
    the raised points: it tells nothing of the order of anybody's rows.

    All parties learn how many distinct ids each has. Of k > 2 parties, party j < k - 2 (the guest is 0) also learns how
    many ids parties 0 to j + 1 have in common, not which; and where `reveal` is "guest", all learn the number that all
    have in common.

    Args:
        ids: one for each row, compared as `normal` writes them.
        parties: the names of all, the guest first, in the same order everywhere.
        sample_ids: at one party at most, whose rows may repeat an id: what tells its rows of one id apart, and their
            order. The others then have their row so many times.
        cache: at one party at most: a file that keeps its blinded ids and its secret for the next time, which saves
            their points. The others then see that the set is the same, and so whether a common id was common before.
        workers: processes that compute; 1 for this one alone.

    Raises ConfigError where parties differ in their options, DataError for ids that are empty or repeated, CodecError
    for points that nobody could have sent who keeps to the protocol.
    """
    if link.name not in parties or len(parties) != len(set(parties)) or len(parties) < 2:
        raise ConfigError(f"{link.name} cannot align with {', '.join(parties) or 'nobody'}")
    own = distinct(ids, options.fold, sample_ids, options.chunk)
    with Scratch(options.chunk) as scratch:
        found = None if cache is None else kept.load(cache, own.digest, options.kept, scratch)
        salt = curve.secret() if found is None else found.salt
        greeted = await _greet(link, parties, options, own, sample_ids is not None, salt, cache is not None)
        power = Power(workers, group(options.ecdh))
        blinded = found
        if blinded is None:
            blinded = await _blind(own, ids, options, salt, greeted.salt, power, scratch)
            if cache is not None:
                kept.save(cache, own.digest, options.kept, blinded, options.chunk)
        mixes = len(parties) > 2 or options.reveal == "count"
        ring = Ring(link, parties, greeted.sizes, blinded.points, blinded.secret, power, mixes, scratch)
        find = _two if len(parties) == 2 else _several
        count, places = await find(ring, options.reveal)
        if places is None:
            return Common(None, count)
        first = blinded.rows[:][places[:]]
    return Common(await _rows(link, parties, own, first, greeted.repeats, options), count)


# --- before -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Greeted:
    """What all know.

    Attributes:
        sizes: how many distinct ids each party has.
        salt: of the points: of everybody's salt, or of the one's alone that keeps its points.
        repeats: who may have several rows of an id.
    """

    sizes: list[int]
    salt: bytes
    repeats: str | None


async def _greet(
    link: Link, parties: Sequence[str], options: Alignment, own: Distinct, repeated: bool,
    salt: bytes, keeps: bool,
) -> _Greeted:  # fmt: skip
    """Tell the others what this party has, and hear the same of them."""
    said = (
        f"psi 2, parties = {', '.join(parties)}, reveal = {options.reveal}, fold = {options.fold},"
        f" session = {options.session!r}, chunk = {options.chunk},"
        f" ecdh = {options.ecdh}"
    )
    hello = Record(
        salt=torch.frombuffer(bytearray(salt), dtype=torch.uint8),
        kept=keeps, ids=len(own), repeated=repeated, options=said,
    )  # fmt: skip
    heard = {}
    for at, name in enumerate(parties):  # of two the first speaks first: no way needs room
        if at > parties.index(link.name):
            await link.send(name, HELLO, hello)
        heard[name] = hello if name == link.name else await link.receive(name, HELLO)
        if at < parties.index(link.name):
            await link.send(name, HELLO, hello)
    for name, each in heard.items():
        if each.options != said:
            raise ConfigError(f"{link.name} has {said}; {name} has {each.options}")
        if not 0 <= each.ids <= MOST:
            raise CodecError(f"{HELLO.name} of {name}: there cannot be {each.ids} ids")
    repeats = _one([name for name, each in heard.items() if each.repeated], "sample ids")
    keeper = _one([name for name, each in heard.items() if each.kept], "a cache")
    if repeats not in (None, parties[0]) and options.reveal == "guest":
        raise ConfigError(
            f'{repeats} has sample ids, and would have to know common ids: reveal is "guest"',
            hint="let the ids of the guest alone repeat, or reveal them to both",
        )
    salts = [heard[name].salt.numpy().tobytes() for name in ([keeper] if keeper else parties)]
    return _Greeted([heard[name].ids for name in parties], _salt(options.session, salts), repeats)


def _salt(session: str, salts: Sequence[bytes]) -> bytes:
    name = session.encode("utf-8", "replace")
    return sha256(b"atoll psi 1" + len(name).to_bytes(4, "big") + name + b"".join(salts)).digest()


def _one(names: Sequence[str], what: str) -> str | None:
    if len(names) > 1:
        raise ConfigError(f"{' and '.join(names)} have {what}", hint="one party alone can")
    return names[0] if names else None


async def _blind(
    own: Distinct, ids: Sequence[str], options: Alignment, part: bytes, salt: bytes, power: Power, scratch: Scratch
) -> Blinded:  # fmt: skip
    """The party's own ids as points under a fresh secret, shuffled.

    Args:
        part: this party's part of the salt.
    """
    secret, mixed = curve.secret(), Mixed(scratch, len(own), curve.BYTES)
    for rows in own.pieces(options.chunk):
        mixed.add(await power.blinded(encoded(ids, options.fold, rows), salt, secret), rows)
    return Blinded(part, secret, *await mixed.done())


# --- which are common -------------------------------------------------------------------------------------------------


async def _two(ring: Ring, reveal: Reveal) -> tuple[int | None, Column | None]:
    """The guest compares, and says what it found where the host is to know."""
    keys = await ring.raised()
    met = await ring.sift(keys)
    if reveal == "count":
        count, _ = await ring.tell(None if met is None else met.keys, ())
        return count, None
    if met is not None:
        if reveal == "both":
            await ring.give_places(ring.next, met.last)
        return len(met), met.first
    if reveal == "guest":
        return None, None
    places = await ring.take_places(ring.next, ring.sizes[ring.at])
    return len(places), places


async def _several(ring: Ring, reveal: Reveal) -> tuple[int | None, Column | None]:
    """Who finds the common keys tells them to all who hold a set whose owner is to know."""
    keys = await ring.raised()
    met = await ring.sift(keys)
    owners = {"both": range(ring.count), "guest": (0,), "count": ()}[reveal]
    holders = [(owner - 1) % ring.count for owner in owners]
    count, common = await ring.tell(None if met is None else met.keys, holders)
    places = None if common is None or ring.at not in holders else await ring.find(common, keys)
    return count, await ring.home(places, owners)


async def _rows(
    link: Link, parties: Sequence[str], own: Distinct, first: Rows, repeats: str | None, options: Alignment
) -> IntArray:
    """The rows of the common ids, as often as the party has them whose ids repeat.

    Args:
        first: the first row of each common id.
    """
    if repeats == link.name:
        if options.reveal == "both":
            counts = own.counts(first)
            for name in parties:
                if name != link.name:
                    for low in range(0, len(counts), options.chunk):
                        part = torch.from_numpy(counts[low : low + options.chunk].copy())
                        await link.send(name, REPEATS, Record(counts=part))
        return own.all_rows(first).astype(np.int64)
    rows = first.astype(np.int64)
    if repeats is None:
        return rows
    parts = [np.zeros(0, np.int32)]
    for low in range(0, len(rows), options.chunk):
        part = (await link.receive(repeats, REPEATS)).counts.numpy()
        due = min(options.chunk, len(rows) - low)
        if len(part) != due or part.min() < 1:
            raise CodecError(f"{REPEATS.name} of {repeats}: it must have {due} numbers from 1")
        parts.append(part)
    counts = np.concatenate(parts)
    if counts.sum() > MOST:
        raise CodecError(f"{REPEATS.name} of {repeats}: it has more than {MOST} rows")
    return np.repeat(rows, counts)
