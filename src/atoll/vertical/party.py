"""A party's own table: ids, columns, and at the guest a label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atoll.data.delimited import read_delimited
from atoll.data.table import Table, key
from atoll.errors import DataError
from atoll.vertical.protocol import Task
from atoll.vertical.side import FloatArray, Side

__all__ = ["Party"]


@dataclass(frozen=True)
class Party:
    """What one party brings: rows with ids, of which others may have some too.

    Attributes:
        ids: one text a row.
        x: float64 [n, d], NaN where a value is missing.
        columns: the d names; they stay here.
        y: float64 [n], at the guest.
        labels: what the classes are called, in their order, where the label is one.
        exposure: float64 [n], where counts are over unequal spans.
    """

    ids: Sequence[str]
    x: FloatArray
    columns: tuple[str, ...] = ()
    y: FloatArray | None = None
    labels: tuple[str, ...] = ()
    exposure: FloatArray | None = None

    @staticmethod
    def read(
        source: Any,
        id: str,
        label: str | None = None,
        task: Task = "binary",
        columns: Sequence[str] | None = None,
        exposure: str | None = None,
        name: str = "the table",
    ) -> Party:
        """A party from a file (.csv or .tsv, also compressed), a data frame or a mapping of columns.

        Args:
            id: the column that names rows in the same way at all parties.
            label: the column to predict, at the guest.
            columns: those to learn from; by default all others.
            exposure: the column of spans, for counts.
            name: what errors call it, where it is no file.

        Raises DataError for what cannot be read: no such file or column, text among numbers, no rows.
        """
        table = _table(source, name)
        if not table.rows:
            raise DataError(f"{table.name} has no rows")
        for column in (
            id,
            *((label,) if label else ()),
            *((exposure,) if exposure else ()),
            *(columns or ()),
        ):
            table.require(column, table.name)
        apart = {id, label, exposure}
        chosen = tuple(columns) if columns is not None else tuple(c for c in table.names if c not in apart)
        if repeated := apart & set(chosen):
            raise DataError(
                f"{table.name}: {', '.join(sorted(map(str, repeated)))} is not to learn from",
                hint="columns has only what is to be learned from",
            )
        x = (
            np.column_stack([_numbers(table, column) for column in chosen])
            if chosen
            else np.zeros((table.rows, 0))
        )
        y, labels = (None, ()) if label is None else _label(table, label, task)
        spans = None if exposure is None else _numbers(table, exposure)
        if spans is not None and not bool((spans > 0).all()):
            raise DataError(f"{table.name}: column {exposure!r} has spans that are not above 0")
        ids = [key(value) for value in table.identifiers(id)]
        return Party(ids, x, chosen, y, labels, spans)

    def __len__(self) -> int:
        return len(self.ids)

    def side(self, rows: NDArray[np.int64]) -> Side:
        """These rows, in this order."""
        return Side(self.x, self.columns, self.y, self.exposure).take(rows)


def _table(source: Any, name: str) -> Table:
    if not isinstance(source, str | Path):
        return Table.of(source, name)
    path = Path(source)
    if not path.is_file():
        raise DataError(
            f"{path}: there is no such file", hint="a .csv or .tsv file with a header, also as .xz or .gz"
        )
    return read_delimited(path)


def _numbers(table: Table, column: str) -> FloatArray:
    if table.is_text(column):
        raise DataError(
            f"{table.name}: column {column!r} is text, and numbers are learned from",
            hint="encode it before, or leave it out of columns",
        )
    return np.asarray(table.values(column), np.float64)


def _label(table: Table, column: str, task: Task) -> tuple[FloatArray, tuple[str, ...]]:
    """The label as numbers, and the classes' names."""
    if bool(table.gaps(column).any()):
        raise DataError(f"{table.name}: column {column!r} is to be predicted, and has gaps")
    if task in ("binary", "multiclass"):
        distinct, codes = table.coded(column)
        order = np.argsort(distinct, kind="stable")
        used = [each for each in order if bool((codes == each).any())]
        names = tuple(key(distinct[each]) for each in used)
        if len(names) < 2 or (task == "binary" and len(names) > 2):
            few = "only one class" if len(names) < 2 else f"{len(names)} classes"
            raise DataError(
                f"{table.name}: column {column!r} has {few}: {', '.join(names[:5])}",
                hint="binary takes two, multiclass more",
            )
        place = np.zeros(len(distinct))
        place[used] = np.arange(len(used))
        return place[codes], names
    y = _numbers(table, column)
    if task == "poisson" and not bool((y >= 0).all() and (y == np.rint(y)).all()):
        raise DataError(
            f"{table.name}: column {column!r} has values that are no counts", hint="task = regression"
        )
    return y, ()
