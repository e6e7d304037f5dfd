"""A party's columns in quantile bins, the splits that they allow, and sums over rows by split.

A split sets some rows apart: those inside. Which of its two sides is called so makes no difference to a gain; it is the
one without the column's fullest bin, so that rows in that bin, most of them where columns are sparse, are never added.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atoll.tensors import Record
from atoll.vertical.secureboost.records import as_array, as_tensor
from atoll.vertical.side import FloatArray

__all__ = ["Bins", "Splits", "thresholds"]

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Splits:
    """Splits of rows by one column each, as arrays [m].

    Inside is x <= threshold, or x > threshold where `upper`; a missing value is inside where `missing`.
    """

    column: Indices
    threshold: FloatArray
    upper: NDArray[np.bool_]
    missing: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.column)

    @classmethod
    def none(cls) -> Splits:
        """No split."""
        return cls(np.zeros(0, np.int64), np.zeros(0), np.zeros(0, bool), np.zeros(0, bool))

    def take(self, which: Any) -> Splits:
        """Some of them."""
        return Splits(self.column[which], self.threshold[which], self.upper[which], self.missing[which])

    def joined(self, more: Splits) -> Splits:
        """These, and then more."""
        pairs = [(getattr(self, name), getattr(more, name)) for name in self.__dataclass_fields__]
        return Splits(*(np.concatenate(pair) for pair in pairs))

    def inside(self, which: int, x: FloatArray, rows: Any = slice(None)) -> NDArray[np.bool_]:
        """Which of some rows of x [n, d] are inside a split."""
        values = x[rows, self.column[which]]
        low = values <= self.threshold[which]
        lost = np.isnan(values)
        found: NDArray[np.bool_] = np.where(lost, self.missing[which], low ^ self.upper[which])
        return found

    def record(self) -> Record:
        """For a party's half of the model."""
        return Record({name: as_tensor(getattr(self, name)) for name in self.__dataclass_fields__})

    @classmethod
    def of(cls, record: Record) -> Splits:
        """The splits that a half holds."""
        return cls(*(as_array(record[name]) for name in cls.__dataclass_fields__))


def thresholds(values: FloatArray, bins: int) -> FloatArray:
    """Where a column is cut: at most bins - 1 numbers, midway between values, as many rows between two as can be."""
    values = values[~np.isnan(values)]
    levels, counts = np.unique(values, return_counts=True)
    if len(levels) > bins:
        upto = np.cumsum(counts)
        wanted = upto[-1] * np.arange(1, bins) / bins
        last = np.unique(np.minimum(np.searchsorted(upto, wanted), len(levels) - 2))
    else:
        last = np.arange(len(levels) - 1)
    low, high = levels[last], levels[last + 1]
    with np.errstate(invalid="ignore"):  # between infinite ones
        middle = low / 2 + high / 2
    cut: FloatArray = np.where((low <= middle) & (middle < high), middle, low)
    return cut


class Bins:
    """Columns in bins.

    Attributes:
        splits: all that there are.
        cells: how many bins all columns have together, one of each for missing values where it has any.
        rows, cell: the rows that are not in their column's fullest bin, and their bins; [entries].
    """

    def __init__(self, x: FloatArray, bins: int) -> None:
        self.x = x
        self.cells = 0
        self._previous: list[int] = []
        self._cell: list[int] = []
        self._depth: list[int] = []
        base, more, found = [], [], []
        entries: list[tuple[Indices, Indices]] = []
        for column in range(x.shape[1]):
            cuts = thresholds(x[:, column], bins)
            code = np.searchsorted(cuts, x[:, column], side="left")
            lost = np.isnan(x[:, column])
            code[lost] = len(cuts) + 1
            if not len(cuts) and not lost.any():
                continue
            fullest = int(np.bincount(code).argmax())
            rows = np.flatnonzero(code != fullest)
            entries.append((rows, code[rows] + self.cells))
            for at, upper, missing, chain, extra in self._column(len(cuts), bool(lost.any()), fullest):
                base.append(chain)
                more.append(extra)
                found.append((column, cuts[at] if at < len(cuts) else np.inf, upper, missing))
            self.cells += len(cuts) + 2
        columns = list(zip(*found, strict=True)) if found else [[], [], [], []]
        self.splits = Splits(
            np.array(columns[0], np.int64),
            np.array(columns[1], np.float64),
            np.array(columns[2], bool),
            np.array(columns[3], bool),
        )
        self._base, self._more = np.array(base, np.int64), np.array(more, np.int64)
        self._chain = np.array(self._cell, np.int64), np.array(self._previous, np.int64)
        depth = np.array(self._depth, np.int64)
        self._steps = [np.flatnonzero(depth == at) for at in range(1, depth.max(initial=0) + 1)]
        self._entries = entries
        none = np.zeros(0, np.int64)
        self.rows, self.cell = (
            np.concatenate([part[at] for part in entries]) if entries else none for at in (0, 1)
        )

    def _column(self, cuts: int, lost: bool, fullest: int) -> list[tuple[int, bool, bool, int, int]]:
        """The splits of a column: threshold, upper, missing, which running sum, and the cell added to it, or -1."""
        absent = self.cells + cuts + 1
        found = []
        always = lost and fullest == cuts + 1  # missing values are the fullest bin: never inside
        low = self._running(range(cuts if always else min(fullest, cuts)))
        high = self._running(range(cuts, 0 if always else fullest, -1))
        for at in range(cuts):
            for upper in (False, True):
                if not always and upper != (fullest <= at):
                    continue
                chain = high[cuts - 1 - at] if upper else low[at]
                found.append((at, upper, False, chain, -1))
                if lost and not always:
                    found.append((at, upper, True, chain, absent))
        if lost and always:
            all_values = self._running(range(cuts + 1))
            found.append((cuts, False, False, all_values[-1], -1))
        elif lost:
            found.append((cuts, True, True, self._running([cuts + 1])[0], -1))
        return found

    def _running(self, codes: Any) -> list[int]:
        """Sums of a column's cells one after the other."""
        made: list[int] = []
        for depth, code in enumerate(codes):
            self._cell.append(self.cells + code)
            self._previous.append(made[-1] if made else -1)
            self._depth.append(depth)
            made.append(len(self._cell) - 1)
        return made

    def by_column(self) -> list[tuple[Indices, Indices]]:
        """`rows` and `cell` of each column that can be split."""
        return self._entries

    def sums(self, cells: NDArray[Any], add: Callable[[Any, Any], Any]) -> NDArray[Any]:
        """Sums inside each split of sums by bin: [nodes, cells, ...] -> [nodes, splits, ...]."""
        cell, previous = self._chain
        running = cells[:, cell]
        for step in self._steps:
            running[:, step] = add(running[:, previous[step]], running[:, step])
        found = running[:, self._base]
        plus = np.flatnonzero(self._more >= 0)
        if len(plus):
            found[:, plus] = add(found[:, plus], cells[:, self._more[plus]])
        return found

    def keys(self, slot: Indices) -> tuple[Indices, Indices]:
        """The entries of rows that are in nodes, slot [n] >= 0: their rows, and slot * cells + bin."""
        node = slot[self.rows]
        inside = np.flatnonzero(node >= 0)
        return self.rows[inside], node[inside] * self.cells + self.cell[inside]
