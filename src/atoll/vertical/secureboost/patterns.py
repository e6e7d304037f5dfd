"""Fewer sums of ciphertexts: rows that are in the same bins of several columns are added up once for all of them.

Columns are put into groups. Within a node, rows are summed by pattern, that is by the bins of a group's columns
together, and the sums of patterns by bin. With few patterns among many rows a row costs one addition a group, and not
one a column; the sums are the same whole numbers. ("Four Russians": Arlazarov, Dinic, Kronrod and Faradzev, 1970.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atoll.he import AdditiveHE, Vector
from atoll.vertical.secureboost.bins import Bins

__all__ = ["Patterns"]

Indices = NDArray[np.int64]

_SAMPLE = 4  # groups are chosen by every fourth row: what pays there pays in most nodes


@dataclass(frozen=True)
class _Group:
    """Rows outside the fullest bins of some columns, their patterns, and each pattern's bins, from start on."""

    rows: Indices
    pattern: Indices
    start: Indices
    cells: Indices

    def within(self, slot: Indices) -> tuple[Indices, Indices, Indices, Indices]:
        """In nodes, slot [n] >= 0: rows and their sums' numbers; for each bin of a sum its number, and slot and bin."""
        node = slot[self.rows]
        inside = np.flatnonzero(node >= 0)
        patterns = len(self.start) - 1
        used, which = np.unique(node[inside] * patterns + self.pattern[inside], return_inverse=True)
        node, pattern = np.divmod(used, patterns)
        sizes = self.start[pattern + 1] - self.start[pattern]
        ends = np.cumsum(sizes)
        at = np.arange(ends[-1] if len(ends) else 0) + np.repeat(self.start[pattern] - (ends - sizes), sizes)
        source = np.repeat(np.arange(len(used)), sizes)
        return self.rows[inside], which, source, np.stack([np.repeat(node, sizes), self.cells[at]])


class Patterns:
    """The groups of a party's columns."""

    def __init__(self, bins: Bins) -> None:
        self.bins = bins
        n, parts = len(bins.x), bins.by_column()
        sampled = [(rows[rows % _SAMPLE == 0] // _SAMPLE, cell[rows % _SAMPLE == 0]) for rows, cell in parts]
        groups = _grouped(sampled, -(-n // _SAMPLE))
        self.groups = [_group([parts[column] for column in group], n) for group in groups]

    def sums(self, public: AdditiveHE, c: Vector, place: Indices, slot: Indices, count: int) -> Vector:
        """Sums by node and bin, [count * cells], of c[place[row]] over the rows in nodes, 0 <= slot[row] < count."""
        cells = self.bins.cells
        rows, keys = self.bins.keys(slot)
        found = [group.within(slot) for group in self.groups]
        if sum(len(each[0]) + len(each[2]) for each in found) >= len(rows):
            return public.sum_by_bins(c, place[rows], keys, count * cells)
        starts = np.cumsum([0, *(int(each[1].max(initial=-1)) + 1 for each in found)])
        by_pattern = public.sum_by_bins(
            c,
            place[np.concatenate([each[0] for each in found])],
            np.concatenate([each[1] + start for each, start in zip(found, starts, strict=False)]),
            int(starts[-1]),
        )
        node, cell = np.concatenate([each[3] for each in found], 1)
        source = np.concatenate([each[2] + start for each, start in zip(found, starts, strict=False)])
        return public.sum_by_bins(by_pattern, source, node * cells + cell, count * cells)


def _grouped(parts: list[tuple[Indices, Indices]], n: int) -> list[list[int]]:
    """Columns in groups: one joins the group before it where that saves additions."""
    groups: list[list[int]] = []
    pattern, sizes, cost = np.zeros(n, np.int64), np.zeros(1, np.int64), 0
    for column, part in enumerate(parts):
        alone, alone_sizes = _joined(np.zeros(n, np.int64), np.zeros(1, np.int64), part)
        single = _cost(alone, alone_sizes)
        joined, joined_sizes = _joined(pattern, sizes, part)
        if groups and (new := _cost(joined, joined_sizes)) <= cost + single:
            groups[-1].append(column)
            pattern, sizes, cost = joined, joined_sizes, new
        else:
            groups.append([column])
            pattern, sizes, cost = alone, alone_sizes, single
    return groups


def _joined(pattern: Indices, sizes: Indices, part: tuple[Indices, Indices]) -> tuple[Indices, Indices]:
    """Patterns with one more column, and in how many bins each is."""
    rows, cell = part
    value = np.zeros(len(pattern), np.int64)
    low = int(cell.min(initial=0))
    value[rows] = cell - low + 1
    span = int(value.max(initial=0)) + 1
    levels, which = np.unique(pattern * span + value, return_inverse=True)
    return which, sizes[levels // span] + (levels % span > 0)


def _cost(pattern: Indices, sizes: Indices) -> int:
    """Additions: one for each row in any bin, one for each bin of each pattern."""
    return int(np.count_nonzero(sizes[pattern]) + sizes.sum())


def _group(parts: list[tuple[Indices, Indices]], n: int) -> _Group:
    pattern, sizes = np.zeros(n, np.int64), np.zeros(1, np.int64)
    values = np.full((len(parts), n), -1, np.int64)
    for value, part in zip(values, parts, strict=True):
        pattern, sizes = _joined(pattern, sizes, part)
        value[part[0]] = part[1]
    _, first = np.unique(pattern, return_index=True)
    bins = values[:, first].T
    rows = np.flatnonzero(sizes[pattern] > 0)
    return _Group(rows, pattern[rows], np.concatenate([[0], np.cumsum(sizes)]), bins[bins >= 0])
