"""Arrays too long to hold: a party keeps them in files without a name, and looks at a piece at a time.

What takes up to a megabyte stays in memory. The rest lies where the system puts files that are not to last (TMPDIR says
where else), for this process alone; it is gone when the alignment ends, however it ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from tempfile import SpooledTemporaryFile
from types import TracebackType
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from atoll.errors import RunError

__all__ = ["Buckets", "Column", "Scratch"]

_HELD = 1 << 20  # bytes of a column that stay in memory
_MOST_BITS = 12

Array = NDArray[Any]


class Column:
    """An array that grows at its end and is read in slices.

    Args:
        file: where it lies.
        dtype: of its elements.
        width: elements of a row; 0 for an array of one dimension.
        start: bytes of the file before it.
        rows: how many are there already.
    """

    def __init__(self, file: IO[bytes], dtype: str, width: int = 0, start: int = 0, rows: int = 0) -> None:
        self._file, self._dtype, self._width, self._start = file, np.dtype(dtype), width, start
        self._row = self._dtype.itemsize * max(1, width)
        self._rows = rows

    def __len__(self) -> int:
        return self._rows

    def add(self, rows: Array) -> None:
        """Append rows.  Raises RunError where there is no room for them."""
        found = np.ascontiguousarray(rows, self._dtype)
        try:
            self._file.seek(self._start + self._rows * self._row)
            self._file.write(found.tobytes())
        except OSError as error:
            raise RunError(
                f"what is aligned cannot be put aside: {error.strerror or error}",
                hint="the variable TMPDIR names another place for it; it takes some 110 bytes for each id of any party",
            ) from None
        self._rows += len(found)

    def __getitem__(self, some: slice) -> Array:
        low, high, _ = some.indices(self._rows)
        count = max(0, high - low)
        self._file.seek(self._start + low * self._row)
        blob = self._file.read(count * self._row)
        found = np.frombuffer(blob, self._dtype)
        return found.reshape(count, self._width) if self._width else found

    def pieces(self, size: int) -> Iterator[Array]:
        """All of it, so many rows at a time."""
        for low in range(0, self._rows, size):
            yield self[low : low + size]

    def close(self) -> None:
        """Let go of its file."""
        self._file.close()


class Buckets:
    """Rows of bytes dealt out to buckets, of which one at a time is looked at.

    They lie in one column, as runs that are sorted by bucket, with the place where each bucket begins in each run.

    Args:
        count: how many buckets.
    """

    def __init__(self, column: Column, count: int) -> None:
        self._column, self.count = column, count
        self._begin: list[NDArray[np.int64]] = []

    def add(self, rows: Array, bucket: NDArray[np.int64]) -> None:
        """Deal out rows, each to its bucket."""
        sizes = np.bincount(bucket, minlength=self.count)
        self._begin.append(len(self._column) + np.concatenate([[0], np.cumsum(sizes)]))
        self._column.add(rows[np.argsort(bucket, kind="stable")])

    def __getitem__(self, at: int) -> Array:
        """What is in a bucket, in the order in which it came."""
        parts = [self._column[int(run[at]) : int(run[at + 1])] for run in self._begin]
        return np.concatenate(parts) if parts else self._column[0:0]

    def close(self) -> None:
        """Let go of their file."""
        self._column.close()


class Scratch:
    """Makes columns, and lets go of all of them at the end.

    Args:
        chunk: most rows that are looked at together, about.
    """

    def __init__(self, chunk: int) -> None:
        self.chunk = chunk
        self._held = ExitStack()

    def __enter__(self) -> Scratch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    def column(self, dtype: str = "u1", width: int = 0) -> Column:
        """An empty one."""
        file = SpooledTemporaryFile(_HELD, "w+b")  # noqa: SIM115 - closed with all others
        return self.kept(Column(file, dtype, width))

    def kept(self, column: Column) -> Column:
        """A column that lies elsewhere, to be let go with the others."""
        self._held.callback(column.close)
        return column

    def bits(self, rows: int) -> int:
        """Into how many buckets so many rows are dealt, as a power of two: each has a chunk of them, or less."""
        return min(_MOST_BITS, ((max(1, rows) - 1) // self.chunk).bit_length())

    def buckets(self, width: int, bits: int) -> Buckets:
        """2^bits empty ones, for rows of so many bytes."""
        return Buckets(self.column("u1", width), 1 << bits)
