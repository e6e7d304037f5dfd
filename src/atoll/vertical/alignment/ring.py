"""Parties in a ring: everybody's set goes round, and comes to lie under all secrets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import numpy as np
import torch

from atoll.errors import CodecError
from atoll.parties import Kind, Link
from atoll.tensors import Record
from atoll.vertical.alignment import curve
from atoll.vertical.alignment.columns import Array, Column, Scratch
from atoll.vertical.alignment.keys import KEY, drawn
from atoll.vertical.alignment.kinds import BLINDED, COMMON, COUNT, PLACES, SIFTED
from atoll.vertical.alignment.power import Points, Power
from atoll.vertical.alignment.spilled import Met, Mixed, meet, ordered

__all__ = ["Ring"]


class Ring:
    """What one of k parties does with the sets of all.

    Party j sends to j + 1 and receives from j - 1. Set i begins at its owner under that one's secret; after k - 1 steps
    it lies at party i - 1 under all secrets, and there it stays. Where `mixes` holds, each one who raises a set
    shuffles it, so that nobody, its owner included, knows which of its points is which id.

    Args:
        parties: all names in their order, the guest first.
        sizes: how many ids each has.
        held: this party's points under its secret, uint8 [m, 32]; later whatever set lies here.
        secret: this party's.
        mixes: whether sets are shuffled on their way.
        scratch: where sets lie; its chunk is the most rows of a message.
    """

    def __init__(
        self, link: Link, parties: Sequence[str], sizes: Sequence[int], held: Column, secret: bytes, power: Power,
        mixes: bool, scratch: Scratch,
    ) -> None:  # fmt: skip
        self.link, self.parties, self.sizes = link, tuple(parties), tuple(sizes)
        self.held, self.secret, self.power, self.mixes, self.scratch = held, secret, power, mixes, scratch
        self.count, self.at, self.chunk = len(parties), self.parties.index(link.name), scratch.chunk
        self.next = self.parties[(self.at + 1) % self.count]
        self.previous = self.parties[self.at - 1]
        self.shuffles: dict[int, Column] = {}
        """Owner -> the place, as it came, of what stands at each place now: int32."""

    # --- all secrets --------------------------------------------------------------------------------------------

    async def raised(self) -> Column:
        """Keys under all secrets of the set of the next party: uint8 [n, 16]."""
        for step in range(1, self.count):
            owner = (self.at - step) % self.count
            width = KEY if step == self.count - 1 else curve.BYTES
            if self.mixes:
                mixed = Mixed(self.scratch, self.sizes[owner], width)
                async for low, points in self._swap(self.sizes[owner]):
                    mixed.add(points[:, :width], np.arange(low, low + len(points), dtype=np.int32))
                came, self.shuffles[owner] = await mixed.done()
            else:
                came = self.scratch.column("u1", width)
                async for _, points in self._swap(self.sizes[owner]):
                    came.add(points[:, :width])
            self.held.close()
            self.held = came
        return self.held

    async def _swap(self, due: int) -> AsyncIterator[tuple[int, Points]]:
        """Send the set that lies here on, chunk by chunk, while the next one comes, which is raised.

        One party sends first, all others receive first: no way needs room for what nobody has taken yet.

        Args:
            due: points that come.
        """
        for low in range(0, max(len(self.held), due), self.chunk):
            mine, points = self.held[low : low + self.chunk], None
            if self.at == 0:
                await self._give(self.next, BLINDED, mine)
            if low < due:
                points = await self._take(self.previous, BLINDED, min(self.chunk, due - low))
            if self.at != 0:
                await self._give(self.next, BLINDED, mine)
            if points is not None:
                yield low, await self._raise(points)

    async def _raise(self, points: Points) -> Points:
        if not self.power.group.sound(points):
            raise CodecError(f"{BLINDED.name} of {self.previous}: a point is not below 2^255 - 19")
        try:
            return await self.power.raised(points, self.secret)
        except ValueError:
            raise CodecError(
                f"{BLINDED.name} of {self.previous}: a point has low order, or is none"
            ) from None

    # --- what all have ------------------------------------------------------------------------------------------

    async def sift(self, keys: Column) -> Met | None:
        """What all have, at the party that learns it first: the last but one.

        The guest's set goes from party to party; each leaves in it what its next party has as well, and puts random
        keys in the place of the rest, so that its size tells nothing.

        Args:
            keys: see `raised`.

        Returns where common keys stand in the keys that came, and in the own ones; None elsewhere.
        """
        if self.at == self.count - 1:
            await self.give(self.parties[0], SIFTED, keys)
            return None
        came = await self.take(self.previous, SIFTED, self.sizes[0])
        try:
            met = await meet(came, keys, self.scratch)
        except ValueError:
            raise CodecError("a point is twice in a blinded set, or in what is left of one") from None
        came.close()
        if self.at == self.count - 2:
            return met
        left = met.keys
        for low in range(len(met), self.sizes[0], self.chunk):
            left.add(drawn(min(self.chunk, self.sizes[0] - low)))
        await self.give(self.next, SIFTED, await ordered(left, self.scratch))
        return None

    async def tell(self, keys: Column | None, to: Sequence[int]) -> tuple[int, Column | None]:
        """The number of common ids to all, and their keys to some.

        Args:
            keys: the common keys in their order, at the party that knows them.
            to: which parties get them.
        """
        knows = self.count - 2
        if keys is not None:
            for other, name in enumerate(self.parties):
                if other != knows:
                    await self.link.send(name, COUNT, Record(count=len(keys)))
                    if other in to:
                        await self.give(name, COMMON, keys)
            return len(keys), keys
        count = (await self.link.receive(self.parties[knows], COUNT)).count
        if not 0 <= count <= min(self.sizes):
            raise CodecError(f"{COUNT.name} of {self.parties[knows]}: there cannot be {count} common ids")
        if self.at not in to:
            return count, None
        return count, await self.take(self.parties[knows], COMMON, count)

    async def find(self, common: Column, keys: Column) -> Column:
        """Where common keys stand in the set that lies here.  Raises CodecError where one does not."""
        try:
            met = await meet(common, keys, self.scratch)
        except ValueError:
            met = None
        if met is None or len(met) != len(common) or not _counts(met.first, self.chunk):
            raise CodecError(f"{COMMON.name} of {self.parties[-2]}: not all of it is in this party's set")
        return met.last

    async def home(self, places: Column | None, owners: Sequence[int]) -> Column | None:
        """Places in sets as they lie at the end of their way become places in sets as their owners know them.

        They go back the way that the sets came, and each party undoes its shuffle.

        Args:
            places: of the common points in the next party's set, at who has them.
            owners: whose sets are asked for.
        """
        for step in range(1, self.count):
            owner, due = (self.at + step) % self.count, (self.at + step + 1) % self.count
            if places is not None:
                places = self._undone(places, self.shuffles.pop(owner))
            if self.at == 0 and places is not None:
                await self.give_places(self.previous, places)
            came = await self.take_places(self.next, self.sizes[due]) if due in owners else None
            if self.at != 0 and places is not None:
                await self.give_places(self.previous, places)
            places = came
        return places

    def _undone(self, places: Column, shuffle: Column) -> Column:
        found, before = self.scratch.column("<i4"), shuffle[:]
        for some in places.pieces(self.chunk):
            found.add(before[some])
        shuffle.close()
        return found

    async def give_places(self, to: str, places: Column) -> None:
        """Send places. How many they are is told by their end: a message that is not full."""
        for low in range(0, len(places) + 1, self.chunk):
            part = torch.from_numpy(places[low : low + self.chunk].copy())
            await self.link.send(to, PLACES, Record(places=part))

    async def take_places(self, sender: str, size: int) -> Column:
        """Places in a set of that size, none twice."""
        found, seen = self.scratch.column("<i4"), np.zeros(size, np.bool_)
        while True:
            places = (await self.link.receive(sender, PLACES)).places.numpy()
            sound = len(places) <= self.chunk and (
                not len(places) or (places.min() >= 0 and places.max() < size)
            )
            if sound:
                seen[places] = True
                found.add(places)
            if not sound or np.count_nonzero(seen) != len(found):
                raise CodecError(
                    f"{PLACES.name} of {sender}: it has a place twice, or one that is not below {size}"
                )
            if len(places) < self.chunk:
                return found

    # --- columns in chunks --------------------------------------------------------------------------------------

    async def give(self, to: str, kind: Kind, column: Column) -> None:
        """Send a column whose length its receiver knows."""
        for part in column.pieces(self.chunk):
            await self._give(to, kind, part)

    async def take(self, sender: str, kind: Kind, due: int) -> Column:
        """Receive it: uint8 [due, 16]."""
        found = self.scratch.column("u1", KEY)
        for low in range(0, due, self.chunk):
            found.add(await self._take(sender, kind, min(self.chunk, due - low)))
        return found

    async def _give(self, to: str, kind: Kind, part: Array) -> None:
        if len(part):
            record = Record(points=torch.from_numpy(np.array(part)))
            await self.link.send(to, kind, record, under=self.power.group.name, ciphertexts=len(part))

    async def _take(self, sender: str, kind: Kind, due: int) -> Points:
        part: Points = (await self.link.receive(sender, kind)).points.numpy()
        if len(part) != due:
            raise CodecError(f"{kind.name} of {sender} has {len(part)} rows, and {due} are due")
        return part


def _counts(places: Column, chunk: int) -> bool:
    """Whether places are 0, 1, 2 and so on."""
    low = 0
    for some in places.pieces(chunk):
        if not np.array_equal(some, np.arange(low, low + len(some))):
            return False
        low += len(some)
    return True
