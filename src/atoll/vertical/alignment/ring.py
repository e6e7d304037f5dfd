"""Parties in a ring: everybody's set goes round, and comes to lie under all secrets."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from atoll.errors import CodecError
from atoll.parties import Kind, Link
from atoll.tensors import Record
from atoll.vertical.alignment import curve
from atoll.vertical.alignment.keys import KEY, Keys, drawn, meet, order
from atoll.vertical.alignment.kinds import BLINDED, COMMON, COUNT, PLACES, SIFTED
from atoll.vertical.alignment.power import Points, Power

__all__ = ["Ring", "shuffled"]

Places = NDArray[np.int32]


def shuffled(count: int) -> Places:
    """A random order, by sorting 64 bits of the operating system for each."""
    draws = np.frombuffer(secrets.token_bytes(8 * count), np.uint64)
    return np.argsort(draws, kind="stable").astype(np.int32)


class Ring:
    """What one of k parties does with the sets of all.

    Party j sends to j + 1 and receives from j - 1. Set i begins at its owner under that one's secret; after k - 1 steps
    it lies at party i - 1 under all secrets, and there it stays. Where `mixes` holds, each one who raises a set
    shuffles it, so that nobody, its owner included, knows which of its points is which id.

    Args:
        parties: all names in their order, the guest first.
        sizes: how many ids each has.
        held: this party's points under its secret; later whatever set lies here.
        secret: this party's.
        mixes: whether sets are shuffled on their way.
        chunk: most points of a message.
    """

    def __init__(
        self, link: Link, parties: Sequence[str], sizes: Sequence[int], held: Points, secret: bytes, power: Power,
        mixes: bool, chunk: int,
    ) -> None:  # fmt: skip
        self.link, self.parties, self.sizes = link, tuple(parties), tuple(sizes)
        self.held, self.secret, self.power, self.mixes, self.chunk = held, secret, power, mixes, chunk
        self.count, self.at = len(parties), self.parties.index(link.name)
        self.next = self.parties[(self.at + 1) % self.count]
        self.previous = self.parties[self.at - 1]
        self.shuffles: dict[int, Places] = {}
        """Owner -> the place, as it came, of what stands at each place now."""

    # --- all secrets --------------------------------------------------------------------------------------------

    async def raised(self) -> Keys:
        """Keys under all secrets of the set of the next party."""
        for step in range(1, self.count):
            owner = (self.at - step) % self.count
            came = await self._swap(self.sizes[owner], KEY if step == self.count - 1 else curve.BYTES)
            if self.mixes:
                self.shuffles[owner] = shuffled(len(came))
                came = came[self.shuffles[owner]]
            self.held = came
        keys, self.held = self.held, self.held[:0]
        return keys

    async def _swap(self, due: int, width: int) -> Points:
        """Send the set that lies here on, chunk by chunk, while the next one comes, which is raised.

        One party sends first, all others receive first: no way needs room for what nobody has taken yet.

        Args:
            due: points that come.
            width: bytes of each that are kept.
        """
        came = np.empty((due, width), np.uint8)
        for low in range(0, max(len(self.held), due), self.chunk):
            high = min(low + self.chunk, due)
            mine, points = self.held[low : low + self.chunk], came[:0]
            if self.at == 0:
                await self._give(self.next, BLINDED, mine)
            if low < due:
                points = await self._take(self.previous, BLINDED, high - low)
            if self.at != 0:
                await self._give(self.next, BLINDED, mine)
            if low < due:
                came[low:high] = (await self._raise(points))[:, :width]
        return came

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

    async def sift(self, keys: Keys) -> tuple[Places, Places] | None:
        """What all have, at the party that learns it first: the last but one.

        The guest's set goes from party to party; each leaves in it what its next party has as well, and puts random
        keys in the place of the rest, so that its size tells nothing.

        Args:
            keys: see `raised`.

        Returns the places in the keys that came and in the own ones; None elsewhere.
        """
        if self.at == self.count - 1:
            await self.give(self.parties[0], SIFTED, keys)
            return None
        came = await self.take(self.previous, SIFTED, self.sizes[0])
        try:
            theirs, places = meet(came, keys)
        except ValueError:
            raise CodecError("a point is twice in a blinded set, or in what is left of one") from None
        if self.at == self.count - 2:
            return theirs, places
        left = np.concatenate([keys[places], drawn(len(came) - len(places))])
        await self.give(self.next, SIFTED, left[order(left)])
        return None

    async def tell(self, keys: Keys | None, to: Sequence[int]) -> tuple[int, Keys | None]:
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

    def find(self, common: Keys, keys: Keys) -> Places:
        """Where common keys stand in the set that lies here.  Raises CodecError where one does not."""
        try:
            at, places = meet(common, keys)
        except ValueError:
            at, places = np.zeros(0, np.int32), np.zeros(0, np.int32)
        if len(at) != len(common) or not np.array_equal(at, np.arange(len(at))):
            raise CodecError(f"{COMMON.name} of {self.parties[-2]}: not all of it is in this party's set")
        return places

    async def home(self, places: Places | None, owners: Sequence[int]) -> Places | None:
        """Places in sets as they lie at the end of their way become places in sets as their owners know them.

        They go back the way that the sets came, and each party undoes its shuffle.

        Args:
            places: of the common points in the next party's set, at who has them.
            owners: whose sets are asked for.
        """
        for step in range(1, self.count):
            owner, due = (self.at + step) % self.count, (self.at + step + 1) % self.count
            if places is not None:
                places = self.shuffles[owner][places]
            if self.at == 0 and places is not None:
                await self.give_places(self.previous, places)
            came = await self.take_places(self.next, self.sizes[due]) if due in owners else None
            if self.at != 0 and places is not None:
                await self.give_places(self.previous, places)
            places = came
        return places

    async def give_places(self, to: str, places: Places) -> None:
        await self.link.send(to, PLACES, Record(places=torch.from_numpy(places)))

    async def take_places(self, sender: str, size: int) -> Places:
        """Places in a set of that size, none twice."""
        places: Places = (await self.link.receive(sender, PLACES)).places.numpy()
        sound = not len(places) or (places.min() >= 0 and places.max() < size)
        if not sound or len(np.unique(places)) != len(places):
            raise CodecError(
                f"{PLACES.name} of {sender}: it has a place twice, or one that is not below {size}"
            )
        return places

    # --- arrays in chunks ---------------------------------------------------------------------------------------

    async def give(self, to: str, kind: Kind, array: Points | Keys) -> None:
        """Send an array whose length its receiver knows."""
        for low in range(0, len(array), self.chunk):
            await self._give(to, kind, array[low : low + self.chunk])

    async def take(self, sender: str, kind: Kind, due: int) -> Keys:
        """Receive it."""
        parts = [
            await self._take(sender, kind, min(self.chunk, due - low)) for low in range(0, due, self.chunk)
        ]
        return np.concatenate(parts) if parts else np.empty((0, KEY), np.uint8)

    async def _give(self, to: str, kind: Kind, part: Points | Keys) -> None:
        if len(part):
            record = Record(points=torch.from_numpy(np.array(part)))
            await self.link.send(to, kind, record, under=self.power.group.name, ciphertexts=len(part))

    async def _take(self, sender: str, kind: Kind, due: int) -> Points:
        part: Points = (await self.link.receive(sender, kind)).points.numpy()
        if len(part) != due:
            raise CodecError(f"{kind.name} of {sender} has {len(part)} rows, and {due} are due")
        return part
