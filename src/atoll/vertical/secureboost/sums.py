"""Sums inside splits, for all nodes of a level: the guest's own, and those that a host has of encrypted numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from atoll.errors import CodecError
from atoll.he import Layout, SecretHE
from atoll.parties import Link
from atoll.tensors import Record
from atoll.vertical.secureboost import messages
from atoll.vertical.secureboost.bins import Bins
from atoll.vertical.secureboost.records import as_array, as_tensor
from atoll.vertical.side import FloatArray

__all__ = ["Level", "Own", "Party", "Remote"]


MOST = 10_000_000
"""Splits of a host."""


@dataclass(frozen=True)
class Level:
    """Nodes that may be split, and where rows are.

    Attributes:
        slot: int64 [n], the node of each row among them, or -1.
        grown: bool [n], the rows that count.
        parent: the parent of each node in the level before, by its number there.
        sibling: the other child, where it is in this level too, or -1.
        totals: whole numbers [nodes, 2], sums of g and of h over rows that count; `spans` [nodes], of |g|.
    """

    slot: NDArray[np.int64]
    grown: NDArray[np.bool_]
    parent: list[int]
    sibling: list[int]
    totals: FloatArray
    spans: FloatArray

    def smaller(self) -> list[int]:
        """The nodes with fewer rows than their siblings, or without one."""
        counts = np.bincount(self.slot[(self.slot >= 0) & self.grown], minlength=len(self.parent))
        return [
            at
            for at, other in enumerate(self.sibling)
            if other < 0 or (counts[at], at) < (counts[other], other)
        ]


class Party:
    """What is known of a party's splits in the level before: siblings are differences."""

    def __init__(self) -> None:
        self.before: FloatArray | None = None

    def begin(self) -> None:
        """A new tree."""
        self.before = None

    def built(self, level: Level) -> list[int]:
        """The nodes whose sums are asked for."""
        return list(range(len(level.parent))) if self.before is None else level.smaller()

    def all_of(self, level: Level, built: list[int], sums: FloatArray) -> FloatArray:
        """Sums [nodes, splits, 2] of all nodes, given those of the nodes that are `built`."""
        found = np.empty((len(level.parent), *sums.shape[1:]))
        found[built] = sums
        for at in set(range(len(level.parent))) - set(built):
            assert self.before is not None
            found[at] = self.before[level.parent[at]] - found[level.sibling[at]]
        self.before = found
        return found


class Own(Party):
    """The guest's own splits, whose sums are exact: of whole numbers, below 2^53."""

    def __init__(self, bins: Bins) -> None:
        super().__init__()
        self.bins = bins

    def sums(self, level: Level, whole: FloatArray) -> FloatArray:
        """Sums [nodes, splits, 2] of whole numbers [2, n] of rows."""
        built = self.built(level)
        rows, keys = self.bins.keys(_places(level.slot, built, len(level.parent)))
        count = len(built) * self.bins.cells
        cells = np.stack([np.bincount(keys, column[rows], count) for column in whole], -1)
        sums = self.bins.sums(cells.reshape(len(built), self.bins.cells, 2), np.add)
        return self.all_of(level, built, sums)


class Remote(Party):
    """A host's splits, under numbers that mean nothing to the guest."""

    def __init__(self, link: Link, host: str, secret: SecretHE, layout: Layout, splits: int) -> None:
        super().__init__()
        if not 0 <= splits <= MOST:
            raise CodecError(f"boost.splits of {host} says {splits}, and it must lie between 0 and {MOST}")
        self.link, self.host, self.secret, self.layout, self.splits = link, host, secret, layout, splits
        self.due = 0
        """Levels that the host still waits for."""
        self.waits = False
        """Whether it waits to be told which splits to make."""

    def begin(self, due: int = 0) -> None:
        super().begin()
        self.due = due

    async def ask(self, level: Level) -> list[int]:
        """Send where rows are; the nodes that were asked for."""
        built = self.built(level)
        await self._nodes(level.slot, built)
        self.due -= 1
        self.waits = True
        return built

    async def end(self) -> None:
        """No more levels in this tree."""
        if self.due:
            await self._nodes(np.zeros(0, np.int64), [])
        self.due = 0

    async def _nodes(self, slot: NDArray[np.int64], built: list[int]) -> None:
        record = Record(node=as_tensor(slot.astype(np.int16)), built=torch.tensor(built, dtype=torch.int64))
        await self.link.send(self.host, messages.NODES, record)

    async def sums(self, level: Level, built: list[int]) -> FloatArray:
        """Sums [nodes, splits, 2].  Raises CodecError where they are none of these nodes."""
        record = await self.link.receive(self.host, messages.SUMS)
        public, layout, what = self.secret.public, self.layout, f"boost.sums of {self.host}"
        count, per = len(built) * self.splits, public.per(layout.bits)
        if len(record.c) != -(-count // per):
            raise CodecError(f"{what} has {len(record.c)} ciphertexts, and {-(-count // per)} are due")
        c = public.from_bytes(as_array(record.c), what)
        columns = layout.split(self.secret.decrypt(c, layout.bits * per, what))
        sums = np.stack([column[:count] for column in columns], -1).astype(np.float64)
        sums = sums.reshape(len(built), self.splits, 2)
        g, h = sums[..., 0], sums[..., 1]
        bound, total = level.spans[built, None], level.totals[built, 1, None]
        if (np.abs(g) > bound).any() or (h < 0).any() or (h > total).any():
            raise CodecError(f"{what} are no sums over rows of these nodes")
        return self.all_of(level, built, sums)

    async def sides(self, nodes: list[int], splits: list[int], sizes: list[int]) -> list[NDArray[np.bool_]]:
        """Have nodes split; which of their rows are inside, node by node."""
        record: Any = Record(node=torch.tensor(nodes), split=torch.tensor(splits))
        if not nodes:
            record = Record({name: torch.zeros(0, dtype=torch.int64) for name in ("node", "split")})
        await self.link.send(self.host, messages.CHOSEN, record)
        self.waits = False
        if not nodes:
            return []
        answer = as_array((await self.link.receive(self.host, messages.SIDES)).inside)
        if len(answer) != -(-sum(sizes) // 8):
            raise CodecError(
                f"boost.sides of {self.host} has {len(answer)} bytes, and {-(-sum(sizes) // 8)} are due"
            )
        flags = np.unpackbits(answer, count=sum(sizes)).view(np.bool_)
        return np.split(flags, np.cumsum(sizes)[:-1])


def _places(slot: NDArray[np.int64], built: list[int], nodes: int) -> NDArray[np.int64]:
    """Nodes by their places among those that are built, -1 for the others."""
    place = np.full(nodes + 1, -1, np.int64)  # the last for rows in no node
    place[built] = np.arange(len(built))
    return place[slot]
