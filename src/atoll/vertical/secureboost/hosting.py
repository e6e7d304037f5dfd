"""A host: it adds up what it cannot read, keeps its own splits, and says which rows are inside them."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atoll import he, seeds
from atoll.errors import CodecError, DataError
from atoll.he import AdditiveHE, Layout, Vector
from atoll.parties import Link
from atoll.tensors import Record
from atoll.vertical.protocol import Case, Progress
from atoll.vertical.secureboost import messages
from atoll.vertical.secureboost.bins import Bins, Splits
from atoll.vertical.secureboost.patterns import Patterns
from atoll.vertical.secureboost.records import as_array, as_tensor, packed_bits, unpacked_bits
from atoll.vertical.side import FloatArray, Side

if TYPE_CHECKING:
    from atoll.vertical.secureboost import SecureBoost

__all__ = ["answer", "grow"]


async def grow(terms: SecureBoost, link: Link, side: Side, case: Case, progress: Progress) -> Record:
    """A host's part; its half of the model."""
    host = _Host(terms, link, side, case, progress)
    await host.begin(progress.number)
    groups = case.classes if case.task == "multiclass" else 1
    for step in range(progress.number, terms.trees):
        for group in range(groups):
            await host.tree(step * groups + group)
        progress.tell(step + 1, host.half(), {})
    if terms.importance == "column":
        await link.send(case.guest, messages.COLUMNS, Record(number=as_tensor(host.numbers())))
    return host.half()


async def answer(link: Link, side: Side, case: Case, half: Record) -> None:
    """Say on which side of this host's splits rows are."""
    asked = await link.receive(case.guest, messages.ASK)
    _same_rows(asked.rows, side, case)
    await _outcomes(link, side.x, case, Splits.of(half.splits))


async def _outcomes(link: Link, x: FloatArray, case: Case, splits: Splits) -> None:
    for start in range(0, len(x), messages.BLOCK):
        block = x[start : start + messages.BLOCK]
        inside = np.array([splits.inside(at, block) for at in range(len(splits))], bool)
        record = Record(inside=packed_bits(inside.reshape(len(splits), len(block))))
        await link.send(case.guest, messages.OUTCOMES, record)


def _same_rows(rows: int, side: Side, case: Case) -> None:
    if rows != len(side):
        raise DataError(
            f"{case.guest} has {rows} rows, and here are {len(side)}", hint="align the rows first"
        )


class _Host:
    def __init__(self, terms: SecureBoost, link: Link, side: Side, case: Case, progress: Progress) -> None:
        self.terms, self.link, self.side, self.case = terms, link, side, case
        self.bins = Bins(side.x, terms.bins)
        top = 1 << terms.precision
        self.layout = Layout((-top, 0), (top, top), len(side))
        self.kept = Splits.none() if progress.half is None else Splits.of(progress.half.splits)
        # What the guest cannot know, and what is the same when a run goes on.
        digest = hashlib.sha256(np.ascontiguousarray(side.x).tobytes()).digest()
        self.secret = int.from_bytes(digest[:8], "little") ^ case.seed
        self.public: AdditiveHE
        self.patterns: Patterns | None = None

    def half(self) -> Record:
        """This host's half of the model."""
        numbers = self.numbers() if self.terms.importance == "column" else np.zeros(0, np.int64)
        return Record(splits=self.kept.record(), numbers=as_tensor(numbers))

    def numbers(self) -> NDArray[np.int64]:
        """For each split the number of its column: from 0, in an order that has no meaning."""
        order = seeds.rng(self.secret, "secureboost.columns").permutation(self.side.x.shape[1])
        return np.unique(order[self.kept.column], return_inverse=True)[1].astype(np.int64)

    async def begin(self, steps: int) -> None:
        """Take the key; help the guest to catch up."""
        begin = await self.link.receive(self.case.guest, messages.BEGIN)
        _same_rows(begin.rows, self.side, self.case)
        if begin.steps != steps:
            raise DataError(
                f"{self.case.guest} goes on after tree {begin.steps}, and {self.link.name} after tree {steps}",
                hint="begin both from the same step",
            )
        self.public = he.load(self.case.crypto, as_array(begin.key), self.terms.workers)
        self.layout.fits(self.public.capacity, self.public.name)
        await self.link.send(self.case.guest, messages.SPLITS, Record(count=len(self.bins.splits)))
        if steps:
            await _outcomes(self.link, self.side.x, self.case, self.kept)

    # --- one tree -----------------------------------------------------------------------------------------------

    async def tree(self, number: int) -> None:
        """Help with a tree, as far as the guest asks."""
        told = await self.link.receive(self.case.guest, messages.TREE)
        if not told.levels:
            return
        place, c = await self._pairs(told)
        order = seeds.rng(self.secret, "secureboost.order", number).permutation(len(self.bins.splits))
        for _ in range(told.levels):
            nodes = await self.link.receive(self.case.guest, messages.NODES)
            slot, built = as_array(nodes.node).astype(np.int64), as_array(nodes.built)
            if not len(slot):
                return
            self._fits(slot, built)
            await self._sum(c, place, slot, built, order)
            await self._split(slot, order)

    async def _pairs(self, told: Record) -> tuple[NDArray[np.int64], Vector]:
        """Where each row's ciphertext is, -1 where it has none, and the ciphertexts."""
        n = len(self.side)
        if len(told.rows) not in (0, -(-n // 8)):
            raise CodecError(f"boost.tree of {self.case.guest} is about another number of rows")
        grown = unpacked_bits(told.rows, n) if len(told.rows) else np.ones(n, bool)
        place = np.where(grown, np.cumsum(grown) - 1, -1)
        parts: list[Vector] = []
        missing = int(grown.sum())
        while missing > 0:
            record = await self.link.receive(self.case.guest, messages.PAIRS)
            parts.append(self.public.from_bytes(as_array(record.c), f"boost.pairs of {self.case.guest}"))
            missing -= len(parts[-1])
            if missing < 0 or not len(parts[-1]):
                raise CodecError(f"boost.pairs of {self.case.guest} are not as many as there are rows")
        return place, np.concatenate(parts)

    def _fits(self, slot: NDArray[np.int64], built: NDArray[np.int64]) -> None:
        nodes = int(slot.max(initial=-1)) + 1
        fair = len(slot) == len(self.side) and slot.min() >= -1
        if not fair or len(np.unique(built)) != len(built) or not ((built >= 0) & (built < nodes)).all():
            raise CodecError(f"boost.nodes of {self.case.guest} names nodes or rows that are not there")

    async def _sum(
        self, c: Vector, place: NDArray[np.int64], slot: NDArray[np.int64], built: NDArray[np.int64],
        order: NDArray[Any],
    ) -> None:  # fmt: skip
        """Send sums inside all splits, in their order for this tree, for the nodes that are asked for."""
        public, count = self.public, len(built)
        where = np.full(int(slot.max(initial=-1)) + 2, -1, np.int64)  # the last for rows in no node
        where[built] = np.arange(count)
        grown = np.where(place >= 0, where[slot], -1)
        least = int(np.bincount(grown[grown >= 0], minlength=count).min(initial=len(grown)))
        if least < min(self.terms.min_rows, len(c)):
            raise CodecError(
                f"boost.nodes of {self.case.guest} asks for sums of {least} rows, and {self.terms.min_rows} are least",
                hint="both sides must run with the same settings",
            )
        cells = self._cells(c, place, grown, count)
        cells = cells.reshape(count, self.bins.cells, *cells.shape[1:])
        sums = self.bins.sums(cells, public.add)[:, order]
        flat = sums.reshape(count * len(order), *sums.shape[2:])
        blob = as_tensor(public.reply(flat, self.layout.bits, self.layout.lift))
        await self.link.send(
            self.case.guest,
            messages.SUMS,
            Record(c=blob),
            **he.told(public, len(blob)),
        )

    def _cells(self, c: Vector, place: NDArray[np.int64], slot: NDArray[np.int64], count: int) -> Vector:
        """Sums by node and bin."""
        if self.public.scheme == "none":  # an addition costs less than to save it
            rows, keys = self.bins.keys(slot)
            return self.public.sum_by_bins(c, place[rows], keys, count * self.bins.cells)
        if self.patterns is None:
            self.patterns = Patterns(self.bins)
        return self.patterns.sums(self.public, c, place, slot, count)

    async def _split(self, slot: NDArray[np.int64], order: NDArray[Any]) -> None:
        """Keep the splits that the guest chose, and say which rows are inside."""
        chosen = await self.link.receive(self.case.guest, messages.CHOSEN)
        nodes, splits = as_array(chosen.node), as_array(chosen.split)
        fair = len(nodes) == len(splits) and np.isin(nodes, slot).all() and (nodes >= 0).all()
        if not fair or not ((splits >= 0) & (splits < len(order))).all():
            raise CodecError(f"boost.chosen of {self.case.guest} names nodes or splits that are not there")
        if not len(nodes):
            return
        taken = self.bins.splits.take(order[splits])
        inside = [
            taken.inside(at, self.side.x, np.flatnonzero(slot == node)) for at, node in enumerate(nodes)
        ]
        self.kept = self.kept.joined(taken)
        await self.link.send(
            self.case.guest, messages.SIDES, Record(inside=packed_bits(np.concatenate(inside)))
        )
