"""Ids as they are compared: brought to one form, each once."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atoll.errors import DataError
from atoll.vertical.alignment.columns import Scratch
from atoll.vertical.alignment.keys import KEY, Keys, beginning, order, repeated
from atoll.vertical.alignment.spilled import join, split

__all__ = ["MOST", "Distinct", "IntArray", "Rows", "distinct", "encoded", "normal"]

IntArray = NDArray[np.int64]
Rows = NDArray[np.int32]

MOST = (1 << 31) - 1
"""Ids of a party."""

_SHOWN = 3


def normal(text: str, fold: bool = False) -> str:
    """An id in Unicode's form NFKC without space around it; with `fold`, upper and lower case are one."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    if fold:
        text = unicodedata.normalize("NFKC", text.casefold())
    return text.strip()


def encoded(ids: Sequence[str], fold: bool, rows: Rows) -> list[bytes]:
    """The ids of some rows in their normal form, as UTF-8."""
    return [normal(ids[row], fold).encode() for row in rows.tolist()]


@dataclass(frozen=True)
class Distinct:
    """Which rows there are for each distinct id. An id is called by its first row.

    Attributes:
        count: of all rows.
        rows: those of ids that have several, the ones of an id together, and ids in the order of their first rows:
            int32 [r].
        begin: where each such id's rows begin in them, and the end: int64 [s + 1].
        digest: of all ids and their order, under no key: it stays here.
    """

    count: int
    rows: Rows
    begin: IntArray
    digest: bytes

    def __len__(self) -> int:
        return self.count - len(self.rows) + len(self.begin) - 1

    def pieces(self, size: int) -> Iterator[Rows]:
        """The first row of each id, as they stand, out of so many rows at a time."""
        later = np.sort(np.delete(self.rows, self.begin[:-1]))
        for low in range(0, self.count, size):
            high = min(low + size, self.count)
            a, b = np.searchsorted(later, [low, high])
            yield np.delete(np.arange(low, high, dtype=np.int32), later[a:b] - low)

    def counts(self, first: Rows) -> Rows:
        """How many rows each of some ids has."""
        return self._found(first)[1].astype(np.int32)

    def all_rows(self, first: Rows) -> Rows:
        """All rows of some ids, id after id."""
        at, counts = self._found(first)
        one = np.arange(len(self.rows), len(self.rows) + len(first))
        begin = np.where(counts > 1, self.begin[at], one)
        rows: Rows = np.concatenate([self.rows, first])[_spans(begin, counts)]
        return rows

    def _found(self, first: Rows) -> tuple[IntArray, IntArray]:
        """The place in `begin` of each id that has several rows, any for others; and how many rows each has."""
        leads = np.append(self.rows[self.begin[:-1]], np.int32(MOST))  # no row is called so
        at = np.searchsorted(leads, first)
        return at, np.where(leads[at] == first, np.diff(self.begin, append=0)[at], 1)


def _spans(begin: IntArray, sizes: IntArray) -> IntArray:
    """The places of spans that begin here and are so long, one after the other."""
    ends = np.cumsum(sizes)
    return np.arange(int(sizes.sum())) - np.repeat(ends - sizes, sizes) + np.repeat(begin, sizes)


def distinct(
    ids: Sequence[str], fold: bool = False, sample_ids: Sequence[str] | None = None, chunk: int = 1 << 16
) -> Distinct:
    """The distinct ids among `ids`.

    Args:
        ids: one for each row.
        fold: see `normal`.
        sample_ids: what tells rows of one id apart, and their order; None where every id may be there only once.
        chunk: about how many are looked at together.

    Raises DataError where an id is empty or not text, or is there twice and `sample_ids` do not tell its rows apart.
    Messages, which other parties are told, have no id; hints, which they are not told, have.
    """
    if sample_ids is not None and len(sample_ids) != len(ids):
        raise DataError(f"there are {len(sample_ids)} sample ids for {len(ids)} ids")
    if len(ids) > MOST:
        raise DataError(f"there are {len(ids)} ids, and {MOST} at most can be aligned")
    whole = blake2b(digest_size=32)
    found, sizes = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
    with Scratch(chunk) as scratch:
        bits = scratch.bits(len(ids))
        dealt = scratch.buckets(KEY + 4, bits)
        for low, digests in _digests(ids, fold, chunk):
            whole.update(digests.data)
            dealt.add(
                join(digests, np.arange(low, low + len(digests), dtype=np.int32)), beginning(digests, bits)
            )
        for at in range(dealt.count):
            rows, begin = _several(*split(dealt[at]))
            found.append(rows)
            sizes.append(np.diff(begin))
    rows, counts = np.concatenate(found), np.concatenate(sizes)
    begin = np.append(0, np.cumsum(counts))
    if sample_ids is not None:
        for a, b in pairwise(begin):
            _sort(rows[a:b], sample_ids)
    elif len(counts):
        _refuse(ids, [rows[a:b] for a, b in pairwise(begin[: _SHOWN + 1])], len(counts))
    by_first = np.argsort(rows[begin[:-1]])
    rows = rows[_spans(begin[by_first], counts[by_first])]
    return Distinct(len(ids), rows, np.append(0, np.cumsum(counts[by_first])), whole.digest())


def _several(digests: Keys, rows: Rows) -> tuple[Rows, IntArray]:
    """Rows that share their ids with others, those of one id together; where each id's begin, and the end."""
    by_digest = order(digests)
    begin = np.append(np.flatnonzero(~repeated(digests, by_digest)), len(rows))
    sizes = np.diff(begin)
    shared = np.repeat(sizes > 1, sizes)
    return rows[by_digest[shared]], np.append(0, np.cumsum(sizes[sizes > 1]))


def _digests(ids: Sequence[str], fold: bool, chunk: int) -> Iterator[tuple[int, Keys]]:
    """128 bits of each id, so many at a time, and the row that they begin with: [n, 16]."""
    for low in range(0, len(ids), chunk):
        some = range(low, min(low + chunk, len(ids)))
        blob = b"".join([blake2b(_checked(ids[row], row, fold), digest_size=KEY).digest() for row in some])
        yield low, np.frombuffer(blob, np.uint8).reshape(-1, KEY)


def _checked(text: Any, row: int, fold: bool) -> bytes:
    problem = "is not text"
    if isinstance(text, str):
        try:
            name = normal(text, fold).encode()
        except UnicodeEncodeError:  # half of a surrogate pair
            name = b""
        if name:
            return name
        problem = "is empty or has half a character"
    raise DataError(f"an id {problem}", hint=f"row {row}, counted from 0: leave such rows out")


def _sort(rows: Rows, sample_ids: Sequence[str]) -> None:
    """Put the rows of one id in the order of their sample ids."""
    named = sorted((sample_ids[row], int(row)) for row in rows)
    for (one, row), (other, next_row) in pairwise(named):
        if one == other:
            raise DataError(
                "rows of one id have the same sample id",
                hint=f"rows {row} and {next_row}, counted from 0, both have {one!r}",
            )
    rows[:] = [row for _, row in named]


def _refuse(ids: Sequence[str], groups: Sequence[Any], count: int) -> None:
    shown = [f"{ids[rows[0]]!r} in rows {', '.join(map(str, rows[:_SHOWN]))}" for rows in groups]
    more = " ..." if count > len(groups) else ""
    raise DataError(
        f"{count} ids are there more than once",
        hint=f"{'; '.join(shown)}{more} (counted from 0): leave rows out, or give sample ids, on one side only",
    )
