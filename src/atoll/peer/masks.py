"""Masks between the neighbours of a peer: it learns the sum of what they offer, and nothing of any one of them.

Who hears the peers of a set S asks each of them for its share of their sum. Any two of S have a secret in common, from
the keys that they told each other when they met (X25519, over a connection on which each has shown its certificate).
From the secret, the round, who asks, and S with its keys follows a mask, which one of the two adds and the other
subtracts, modulo 2^32. One share is like numbers drawn at random, and so are any that are not all.

A peer tells one share for each that asks, and round: never a second one for another set or of another model, as what
two differ by tells more than a sum. What it told is on its disk before anybody hears it. Nor does it tell one for a set
that leaves out somebody who is there: so who asks cannot choose with whose shares this one's is mixed.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import torch
from torch import Tensor

from atoll import codec
from atoll.channel.secagg.floors import Marks
from atoll.channel.secagg.keys import Private, derive
from atoll.channel.secagg.masks import apply
from atoll.errors import CodecError
from atoll.peer.others import Other
from atoll.peer.sayings import WithheldError
from atoll.peer.words import Among, among, packed
from atoll.tensors import Record

__all__ = ["Hidden", "Masks"]

_LABEL = b"atoll neighbours mask"

Share = Callable[[str, Sequence[str]], Tensor]
"""Of who asks and of whom it asks: what this peer adds to their sum, int32.  Raises WithheldError."""

Reaches = Callable[[str], Awaitable[bool]]
"""Whether another one is there."""


class Masks:
    """What one peer needs to tell its shares.

    Args:
        name: this peer.
        run: a hash of what all peers have alike.
        key: its own.
        marks: what it has told.
        others: who they are, and their keys.
        reaches: finds out whether one of them is there.
    """

    def __init__(
        self, name: str, run: str, key: Private, marks: Marks, others: Mapping[str, Other], reaches: Reaches
    ) -> None:
        self.name, self.run, self._key, self._marks, self._others = name, run, key, marks, others
        self._reaches, self._one = reaches, asyncio.Lock()

    def asked(self, names: Sequence[str]) -> bytes:
        """The question for the shares of these others."""
        return packed(Among({name: self._others[name].key for name in names}))

    def hidden(
        self, number: int, values: Record, share: Share, due: Callable[[str], Sequence[str]]
    ) -> Hidden:
        """What is said in a round, of these values; `due` says whom one hears in it where all are there."""
        return Hidden(self, number, values, share, due)

    async def told(self, number: int, name: str, asked: bytes, share: Share, due: Sequence[str]) -> bytes:
        """A share under masks, for who asks for it in a round, and hears these where all are there.

        Raises WithheldError.
        """
        keys = self._agreed(name, asked)
        for each in {*due} - {*keys}:
            if await self._reaches(each) and self._others[each].begins <= number:
                raise WithheldError(f"{each} is there, and is left out of its sum")
        known = sorted(keys.items())
        sid = _hashed("set", self.run, number, name, [(each, key.hex()) for each, key in known])
        async with self._one:
            body = await asyncio.to_thread(self._masked, share, name, keys, sid)
            once = _hashed("once", self.run, number, name)
            if not self._marks.only("told", once, hashlib.sha256(sid + body).digest()):
                raise WithheldError(
                    "it was told a share of this round already, and this would be another one"
                )
        return body

    def _agreed(self, name: str, asked: bytes) -> dict[str, bytes]:
        """The set that is asked, with its keys.  Raises WithheldError where they are not those known here."""
        try:
            keys = among(asked)
        except CodecError as error:
            raise WithheldError(error.message) from None
        if name in keys or keys.get(self.name) != self._key.public:
            raise WithheldError("it asks for the share of another one")
        others = [each for each in keys if each != self.name]
        if stranger := next((each for each in others if each not in self._others), None):
            raise WithheldError(f"{stranger} is no peer of this run")
        if unmet := [each for each in others if not self._others[each].key]:
            raise WithheldError(f"{', '.join(unmet)} was not met yet", until=unmet)
        if wrong := next((each for each in others if self._others[each].key != keys[each]), None):
            raise WithheldError(f"it names another key of {wrong} than {wrong} has told here")
        return keys

    def _masked(self, share: Share, name: str, keys: Mapping[str, bytes], sid: bytes) -> bytes:
        """A share with the masks that it has in common with each other one of the set."""
        total = share(name, [*keys]).numpy().view(np.uint32)
        plus, minus = list[bytes](), list[bytes]()
        for each, key in keys.items():
            if each != self.name:
                try:
                    secret = self._key.agree(key)
                except ValueError:
                    raise WithheldError(f"the key of {each} is none") from None
                (plus if self.name < each else minus).append(derive(secret, _LABEL, sid))
        apply(total, plus, minus)
        return codec.encode(Record(share=torch.from_numpy(total.view(np.int32))))


@dataclass(frozen=True)
class Hidden:
    """What a peer says in a round, as shares of sums."""

    masks: Masks
    number: int
    values: Record
    share: Share
    due: Callable[[str], Sequence[str]]

    async def to(self, name: str, whole: bool, asked: bytes) -> bytes:
        return await self.masks.told(self.number, name, asked, self.share, self.due(name))

    def held(self) -> Record:
        return self.values


def _hashed(*what: object) -> bytes:
    return hashlib.sha256(msgspec.json.encode(what)).digest()
