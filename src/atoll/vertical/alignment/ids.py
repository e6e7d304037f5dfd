"""Ids as they are compared: brought to one form, each once."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atoll.errors import DataError
from atoll.vertical.alignment.keys import KEY, Keys, order, repeated

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
    """Which rows there are for each distinct id.

    Attributes:
        rows: all rows, those of one id together: int32 [n].
        begin: where each id's rows begin in them, and the end: int32 [m + 1].
        digest: of all ids and their order, under no key: it stays here.
    """

    rows: Rows
    begin: Rows
    digest: bytes

    def __len__(self) -> int:
        return len(self.begin) - 1

    @property
    def first(self) -> Rows:
        """A row of each id, [m]."""
        return self.rows[self.begin[:-1]]

    def counts(self, chosen: Rows) -> Rows:
        """How many rows each of some ids has."""
        sizes: Rows = np.diff(self.begin)[chosen]
        return sizes

    def all_rows(self, chosen: Rows) -> Rows:
        """All rows of some ids, id after id."""
        counts = self.counts(chosen)
        ends = np.cumsum(counts)
        within = np.arange(int(counts.sum())) - np.repeat(ends - counts, counts)
        rows: Rows = self.rows[np.repeat(self.begin[:-1][chosen], counts) + within]
        return rows


def distinct(ids: Sequence[str], fold: bool = False, sample_ids: Sequence[str] | None = None) -> Distinct:
    """The distinct ids among `ids`.

    Args:
        ids: one for each row.
        fold: see `normal`.
        sample_ids: what tells rows of one id apart, and their order; None where every id may be there only once.

    Raises DataError where an id is empty or not text, or is there twice and `sample_ids` do not tell its rows apart.
    Messages, which other parties are told, have no id; hints, which they are not told, have.
    """
    if sample_ids is not None and len(sample_ids) != len(ids):
        raise DataError(f"there are {len(sample_ids)} sample ids for {len(ids)} ids")
    if len(ids) > MOST:
        raise DataError(f"there are {len(ids)} ids, and {MOST} at most can be aligned")
    digests = _digests(ids, fold)
    by_digest: Rows = order(digests).astype(np.int32)
    begin = np.append(np.flatnonzero(~repeated(digests, by_digest)), len(ids)).astype(np.int32)
    several = np.flatnonzero(np.diff(begin) > 1)
    if sample_ids is not None:
        for at in several:
            _sort(by_digest[begin[at] : begin[at + 1]], sample_ids)
    elif len(several):
        _refuse(ids, [by_digest[begin[at] : begin[at + 1]] for at in several])
    return Distinct(by_digest, begin, blake2b(digests.data, digest_size=32).digest())


def _digests(ids: Sequence[str], fold: bool) -> Keys:
    """128 bits of each id: [n, 16]."""
    found = bytearray(KEY * len(ids))
    for row, text in enumerate(ids):
        found[KEY * row : KEY * (row + 1)] = blake2b(_checked(text, row, fold), digest_size=KEY).digest()
    return np.frombuffer(found, np.uint8).reshape(-1, KEY)


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


def _refuse(ids: Sequence[str], groups: Sequence[Any]) -> None:
    shown = [f"{ids[rows[0]]!r} in rows {', '.join(map(str, rows[:_SHOWN]))}" for rows in groups[:_SHOWN]]
    more = " ..." if len(groups) > _SHOWN else ""
    raise DataError(
        f"{len(groups)} ids are there more than once",
        hint=f"{'; '.join(shown)}{more} (counted from 0): leave rows out, or give sample ids, on one side only",
    )
