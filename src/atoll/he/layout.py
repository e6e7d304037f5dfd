"""Several numbers in one plaintext, with room for their sums; plaintexts as rows of bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atoll.errors import ConfigError

__all__ = ["Layout", "Octets", "numbers", "octets"]

Octets = NDArray[np.uint8]


@dataclass(frozen=True)
class Layout:
    """Columns of whole numbers side by side in one plaintext, each with room for the sum of so many rows.

    The first stands lowest. Each takes whole bytes, so that plaintexts are read without arithmetic. Where a column may
    be negative, so may a plaintext; `lift`, added to a sum before it is decrypted or packed, makes all of it positive.

    Args:
        least: the least value of each column, at most 0.
        most: the largest value of each.
        rows: how many are added up at most.
    """

    least: tuple[int, ...]
    most: tuple[int, ...]
    rows: int

    def __post_init__(self) -> None:
        if max(self.sizes) > 7:
            raise ConfigError(
                f"sums over {self.rows:,} rows have more than 56 bits", hint="use fewer bits for each number"
            )

    @property
    def sizes(self) -> tuple[int, ...]:
        """Bytes of each column's sum."""
        spans = (high - low for low, high in zip(self.least, self.most, strict=True))
        return tuple(max(1, ((span * self.rows).bit_length() + 7) // 8) for span in spans)

    @property
    def bits(self) -> int:
        """Of a plaintext."""
        return 8 * sum(self.sizes)

    @property
    def lift(self) -> int:
        """What makes a sum of plaintexts positive, column by column."""
        shifts = [8 * sum(self.sizes[:at]) for at in range(len(self.sizes))]
        return sum(-low * self.rows << shift for low, shift in zip(self.least, shifts, strict=True))

    def fits(self, capacity: int, name: str) -> None:
        """Raise ConfigError where a plaintext with all rows added up has more bits than there is room for."""
        if self.bits > capacity:
            raise ConfigError(
                f"{name} holds plaintexts of {capacity} bits, and sums over {self.rows:,} rows need {self.bits}",
                hint="use fewer bits for each number, fewer rows, or a longer key",
            )

    def join(self, columns: Sequence[NDArray[np.int64]]) -> Octets:
        """Columns [n] as plaintexts [n, bytes + 1] in two's complement, the last byte for the sign.

        Raises ConfigError where a value is not between its least and its most.
        """
        parts, borrow = [], np.zeros(len(columns[0]), np.int64)
        for column, low, high, size in zip(columns, self.least, self.most, self.sizes, strict=True):
            if len(column) and not (column.min() >= low and column.max() <= high):
                raise ConfigError(f"a number to encrypt is not between {low} and {high}")
            value = column - borrow
            parts.append(_octets_of(value)[:, :size])
            borrow = (value < 0).astype(np.int64)
        parts.append((-borrow).astype(np.int8).view(np.uint8)[:, None])
        return np.ascontiguousarray(np.concatenate(parts, 1))

    def split(self, plain: Octets) -> list[NDArray[np.int64]]:
        """Lifted sums [n, bytes], or several side by side in each row, as columns [all of them]."""
        rows = plain.reshape(-1, sum(self.sizes))
        starts = np.cumsum([0, *self.sizes])
        columns = []
        for start, size, low in zip(starts, self.sizes, self.least, strict=False):
            wide = np.zeros((len(rows), 8), np.uint8)
            wide[:, :size] = rows[:, start : start + size]
            columns.append(wide.view("<i8")[:, 0] + low * self.rows)
        return columns


def octets(values: Iterable[int], size: int | None = None) -> Octets:
    """Whole numbers from 0 as rows of little-endian bytes [n, size], of as many as the largest needs.

    Raises ConfigError for a negative one.
    """
    listed = [int(value) for value in values]
    if listed and min(listed) < 0:
        raise ConfigError("plaintexts are whole numbers from 0, and one is negative")
    if size is None:
        size = max(1, (max(listed, default=0).bit_length() + 7) // 8)
    joined = b"".join(value.to_bytes(size, "little") for value in listed)
    return np.frombuffer(joined, np.uint8).reshape(len(listed), size)


def numbers(plain: Octets) -> list[int]:
    """The other way round."""
    return [int.from_bytes(row.tobytes(), "little") for row in plain]


def _octets_of(column: NDArray[np.int64]) -> Octets:
    return np.ascontiguousarray(column, dtype="<i8").view(np.uint8).reshape(len(column), 8)
