"""Client names and row lists that stay small however many clients there are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import overload

import numpy as np

from .samples import IntArray

__all__ = ["Names", "Rows"]


class Names(Sequence[str]):
    """Names made on demand: position -> name. Like a `range`, as small for a million as for ten."""

    def __init__(
        self, count: int, name: Callable[[int], str] = str, positions: IntArray | None = None
    ) -> None:
        self._count = count
        self._name = name
        self._positions = positions

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, position: int) -> str: ...
    @overload
    def __getitem__(self, position: slice) -> Sequence[str]: ...
    def __getitem__(self, position: int | slice) -> str | Sequence[str]:
        if isinstance(position, slice):
            return [self[index] for index in range(*position.indices(self._count))]
        if position < 0:
            position += self._count
        if not 0 <= position < self._count:
            raise IndexError(f"client {position} of {self._count}")
        return self._name(position if self._positions is None else int(self._positions[position]))

    def __repr__(self) -> str:
        shown = ", ".join(repr(self[index]) for index in range(min(3, self._count)))
        return f"<{self._count} names: {shown}{', ...' if self._count > 3 else ''}>"


class Rows:
    """One list of rows per client, stored as one array and its cuts."""

    def __init__(self, flat: IntArray, ends: IntArray) -> None:
        self.flat = flat
        self.ends = ends

    @classmethod
    def of(cls, parts: Iterable[IntArray]) -> Rows:
        parts = list(parts)
        ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        flat = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
        return cls(flat.astype(np.int64, copy=False), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, client: int) -> IntArray:
        start = int(self.ends[client - 1]) if client else 0
        return self.flat[start : int(self.ends[client])]

    def sizes(self) -> IntArray:
        return np.diff(self.ends, prepend=0)

    def choose(self, clients: IntArray) -> Rows:
        return Rows.of([self[int(client)] for client in clients])
