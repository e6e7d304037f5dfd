"""What is done to columns that are too long to hold: put in a random order, sorted by key, compared.

Rows are dealt to buckets, by the first bits of their keys or by chance, and each bucket is treated as `keys` treats an
array. Buckets one after the other are the whole in the same order.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atoll.vertical.alignment import keys
from atoll.vertical.alignment.columns import Array, Buckets, Column, Scratch
from atoll.vertical.alignment.keys import KEY

__all__ = ["Met", "Mixed", "join", "meet", "ordered", "shuffled", "split"]

Places = NDArray[np.int32]


def shuffled(count: int) -> NDArray[np.int64]:
    """A random order, by sorting 64 bits of the operating system for each."""
    draws = np.frombuffer(secrets.token_bytes(8 * count), np.uint64)
    return np.argsort(draws, kind="stable")


def join(rows: Array, names: Places) -> Array:
    """Rows of bytes with four more, which are a number: uint8 [n, width + 4]."""
    return np.hstack([rows, np.ascontiguousarray(names, "<i4").view(np.uint8).reshape(-1, 4)])


def split(joined: Array) -> tuple[Array, Places]:
    """The rows and their numbers."""
    names: Places = np.ascontiguousarray(joined[:, -4:]).view("<i4")[:, 0]
    return joined[:, :-4], names


class Mixed:
    """Puts rows in a random order, and remembers what each is called.

    Each row goes to a bucket by chance, and buckets are shuffled: as if all were sorted by random numbers, of which the
    bucket's is the beginning.

    Args:
        rows: how many come.
        width: bytes of each.
    """

    def __init__(self, scratch: Scratch, rows: int, width: int) -> None:
        self._scratch, self._width = scratch, width
        self._dealt = scratch.buckets(width + 4, scratch.bits(rows))

    def add(self, rows: Array, names: Places) -> None:
        """Some rows, and their numbers."""
        draws = np.frombuffer(secrets.token_bytes(4 * len(rows)), "<u4")
        self._dealt.add(join(rows, names), (draws & (self._dealt.count - 1)).astype(np.int64))

    async def done(self) -> tuple[Column, Column]:
        """All rows in their new order, uint8 [n, width], and the number of each: int32 [n]."""
        rows, names = self._scratch.column("u1", self._width), self._scratch.column("<i4")
        async for bucket in _each(self._dealt):
            mixed, called = split(bucket[shuffled(len(bucket))])
            rows.add(mixed)
            names.add(called)
        self._dealt.close()
        return rows, names


async def ordered(column: Column, scratch: Scratch) -> Column:
    """Keys in their order: uint8 [n, 16]."""
    found, dealt = scratch.column("u1", KEY), _dealt(column, scratch, scratch.bits(len(column)))
    async for bucket in _each(dealt):
        some = bucket[:, :KEY]
        found.add(some[keys.order(some)])
    dealt.close()
    return found


@dataclass(frozen=True)
class Met:
    """What two columns of keys have in common, in the order of the keys.

    Attributes:
        keys: uint8 [c, 16].
        first, last: where each stands in the one, and in the other: int32 [c].
    """

    keys: Column
    first: Column
    last: Column

    def __len__(self) -> int:
        return len(self.keys)


async def meet(one: Column, other: Column, scratch: Scratch) -> Met:
    """The same as `keys.meet`, bucket by bucket.  Raises ValueError where a key is twice in one of them."""
    bits = scratch.bits(max(len(one), len(other)))
    ours, theirs = _dealt(one, scratch, bits), _dealt(other, scratch, bits)
    found = Met(scratch.column("u1", KEY), scratch.column("<i4"), scratch.column("<i4"))
    for at in range(ours.count):
        (our_keys, our_places), (their_keys, their_places) = split(ours[at]), split(theirs[at])
        first, last = keys.meet(our_keys, their_keys)
        found.keys.add(our_keys[first])
        found.first.add(our_places[first])
        found.last.add(their_places[last])
        await asyncio.sleep(0)
    ours.close()
    theirs.close()
    return found


def _dealt(column: Column, scratch: Scratch, bits: int) -> Buckets:
    """Keys by their first bits, each with its place."""
    dealt, low = scratch.buckets(KEY + 4, bits), 0
    for some in column.pieces(scratch.chunk):
        dealt.add(join(some, np.arange(low, low + len(some), dtype=np.int32)), keys.beginning(some, bits))
        low += len(some)
    return dealt


async def _each(dealt: Buckets) -> AsyncIterator[Array]:
    """One bucket after the other; in between others have their turn."""
    for at in range(dealt.count):
        yield dealt[at]
        await asyncio.sleep(0)
