"""How a party's terms get to the other and what is made of them comes back: open, or under each one's own key."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor

from atoll.errors import CodecError
from atoll.parties import Kind, Link
from atoll.tensors import Record
from atoll.vertical.ftl import kinds
from atoll.vertical.ftl.forms import Row, Terms, summed
from atoll.vertical.ftl.sealing import Keys, Peer, Sealed, blocks

__all__ = ["Open", "Sealing", "Talk", "talk"]

UNDER = "ckks-8192"


class Talk(ABC):
    """One party's way of learning sums of the other's terms.

    Args:
        mine, theirs: the kinds of messages that terms travel in.
        common, hidden: n and d.
    """

    def __init__(self, link: Link, other: str, mine: Kind, theirs: Kind, common: int, hidden: int) -> None:
        self.link, self.other, self.mine, self.theirs = link, other, mine, theirs
        self.common, self.hidden = common, hidden

    async def begin(self) -> None:
        """Before the first terms."""
        return

    @abstractmethod
    async def exchange(self, terms: Terms) -> None:
        """Send one's terms and take the other's."""

    @abstractmethod
    async def sums(self, rows: Iterable[Row]) -> Tensor:
        """What rows of weights make of the other's terms, [rows, d].  Both parties ask at once."""


class Open(Talk):
    """The numbers themselves."""

    async def exchange(self, terms: Terms) -> None:
        await self.link.send(self.other, self.mine, Record(square=terms.square, rows=terms.rows))
        d = self.hidden
        due = {"square": (d, d), "rows": (self.common, d)}
        found = await self.link.receive(self.other, self.theirs)
        for name, shape in due.items():
            _fits(self.theirs, self.other, name, found[name], shape)
        self.terms = Terms(found.square, found.rows)

    async def sums(self, rows: Iterable[Row]) -> Tensor:
        return torch.stack([summed(row, self.terms) for row in rows])


class Sealing(Talk):
    """Ciphertexts: the other's terms stay under its key, and it decrypts covered sums of them."""

    square: Sealed
    rows: Sealed

    async def begin(self) -> None:
        self.keys = Keys()
        await self.link.send(self.other, kinds.KEY, Record(context=self.keys.public()))
        self.peer = Peer((await self.link.receive(self.other, kinds.KEY)).context)

    async def exchange(self, terms: Terms) -> None:
        square, rows = self.keys.seal(terms.square), self.keys.seal(terms.rows)
        await self.link.send(
            self.other, self.mine, Record(square=square, rows=rows), UNDER, len(square) + len(rows)
        )
        found = await self.link.receive(self.other, self.theirs)
        d = self.hidden
        self.square = self.peer.open(found.square, blocks(d, d))
        self.rows = self.peer.open(found.rows, blocks(self.common, d))

    async def sums(self, rows: Iterable[Row]) -> Tensor:
        made = [self.peer.weighed(row, self.square, self.rows) for row in rows]
        covered, covers = torch.stack([each[0] for each in made]), torch.stack([each[1] for each in made])
        await self.link.send(self.other, kinds.MASKED, Record(rows=covered), UNDER, len(covered))
        asked = (await self.link.receive(self.other, kinds.MASKED)).rows
        await self.link.send(self.other, kinds.SUMS, Record(sums=self.keys.sums(asked, self.hidden)))
        found = (await self.link.receive(self.other, kinds.SUMS)).sums
        _fits(kinds.SUMS, self.other, "sums", found, tuple(covers.shape))
        return torch.sub(found, covers)


def talk(crypto: str, link: Link, other: str, guest: bool, common: int, hidden: int) -> Talk:
    """The way that a cipher asks for, at one party."""
    if crypto == "none":
        said = (kinds.GUEST_OPEN, kinds.HOST_OPEN)
        return Open(link, other, *(said if guest else said[::-1]), common, hidden)
    said = (kinds.GUEST_SEALED, kinds.HOST_SEALED)
    return Sealing(link, other, *(said if guest else said[::-1]), common, hidden)


def _fits(kind: Kind, sender: str, name: str, found: Tensor, due: tuple[int, ...]) -> None:
    if tuple(found.shape) != due:
        raise CodecError(
            f"{kind.name} of {sender}: {name} is {list(found.shape)}, and {list(due)} is due",
            hint="both must have the same rows in common, in the same order, and the same settings",
        )
