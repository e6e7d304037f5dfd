"""`Table`: columns by name, whatever they were read from; what is a number, what is a gap, what is a name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from atoll.errors import DataError, suggest

__all__ = [
    "Column",
    "Table",
    "collected",
    "gaps",
    "is_frame",
    "is_number",
    "key",
    "once",
    "single",
    "unnamed",
]

Column = NDArray[Any]

_WHOLE = re.compile(r"[+-]?\d+", re.ASCII)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_CANONICAL = re.compile(r"-?[1-9]\d{0,17}|0", re.ASCII)
_UNNAMED = re.compile(r"(Unnamed: \d+)?", re.ASCII)
_GAPS = {"", "na", "n/a", "#n/a", "nan", "null", "none", "?", "-", "."}  # among numbers
_TRUTH = {"true": True, "false": False}


def is_number(text: str) -> bool:
    """Whether a text is a plain decimal number, such as ``-1.5e3``; ``1_000`` and ``1,5`` are none."""
    return _NUMBER.fullmatch(text) is not None


def unnamed(column: str) -> bool:
    """Whether a column has no name of its own: the row numbers that `to_csv` writes, a comma too many."""
    return _UNNAMED.fullmatch(column.strip()) is not None


def is_frame(value: Any) -> bool:
    """A pandas or polars data frame (also a lazy one), told by the package it comes from."""
    own = type(value).__module__.partition(".")[0] in ("pandas", "polars")
    return own and (hasattr(value, "collect_schema") or hasattr(value, "columns"))


def collected(frame: Any) -> Any:
    """A frame with its values: a lazy one of polars is read now."""
    return frame.collect() if hasattr(frame, "collect") else frame


def key(value: Any) -> str:
    """How a category or a label is compared with others: 1, 1.0 and "1" are the same one."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def gaps(values: Column) -> NDArray[np.bool_]:
    """Where a column has no value: NaN and infinite numbers, None, and empty text."""
    if values.dtype.kind == "f":
        return ~np.isfinite(values)
    if values.dtype.kind in "mM":
        return np.isnat(values)
    if values.dtype.kind == "O":
        return np.array([_nothing(value) for value in values], dtype=bool)
    if values.dtype.kind in "US":
        return cast(NDArray[np.bool_], values == "")
    return np.zeros(len(values), dtype=bool)


def _nothing(value: Any) -> bool:
    return value is None or value != value or str(value) in ("", "<NA>", "NaT")


class Table:
    """Equally long columns by name. One without a name is no column of it.

    Args:
        columns: arrays; or the fields of a text file, as they are written there.
        name: what errors call the table.
    """

    def __init__(self, columns: Mapping[str, Column | list[str]], name: str) -> None:
        self.name = name
        self._columns = {str(each): values for each, values in columns.items() if not unnamed(str(each))}
        self._typed: dict[str, Column] = {}
        lengths = {len(values) for values in self._columns.values()}
        if len(lengths) > 1:
            raise DataError(f"{name}: the columns have {' and '.join(map(str, sorted(lengths)))} rows")
        self.rows = lengths.pop() if lengths else 0

    @property
    def names(self) -> list[str]:
        """The columns, in their order."""
        return list(self._columns)

    def __contains__(self, column: object) -> bool:
        return column in self._columns

    def require(self, column: str, where: str) -> None:
        """Refuse a column that is not there."""
        if column not in self._columns:
            raise DataError(f"{where}: there is no column {column!r}", hint=suggest(column, self._columns))

    def values(self, column: str) -> Column:
        """A column as whole numbers, numbers (NaN where there is none), truth values or text."""
        if column not in self._typed:
            values = self._columns[column]
            self._typed[column] = _typed(values) if isinstance(values, list) else values
        return self._typed[column]

    def identifiers(self, column: str) -> Column:
        """A column whose values are names: text as it is written, and numbers only where that loses nothing."""
        values = self._columns[column]
        if not isinstance(values, list):
            return values
        if values and all(_CANONICAL.fullmatch(field) for field in values):
            return np.array(list(map(int, values)), dtype=np.int64)
        return np.array(values, dtype=object if not values else str)

    @staticmethod
    def of(frame: Any, name: str) -> Table:
        """A pandas or polars frame, or a mapping of columns, as a table.  Raises DataError."""
        if isinstance(frame, Table):
            return frame
        if isinstance(frame, Mapping):
            columns = {
                str(each): single(np.asarray(v), f"{name}: column {each!r}") for each, v in frame.items()
            }
            return Table(columns, name)
        if not is_frame(frame):
            raise DataError(
                f"{name}: a {type(frame).__name__} is not a frame",
                hint="pass a pandas or polars DataFrame, or a mapping of columns",
            )
        frame = collected(frame)
        once(map(str, frame.columns), name)
        return Table({str(column): _column(frame[column], f"{name}: column {column!r}") for column in frame.columns},
                     name)  # fmt: skip


def once(names: Iterable[str], name: str) -> None:
    """Refuse columns of the same name."""
    twice = [each for each, count in Counter(names).items() if count > 1 and not unnamed(each)]
    if twice:
        raise DataError(
            f"{name}: there is more than one column {twice[0]!r}", hint="name the columns, each once"
        )


def _column(series: Any, where: str) -> Column:
    values = np.asarray(series.to_numpy())
    if values.dtype.kind == "O" and type(series).__module__.startswith("pandas"):
        try:  # nullable numbers come as objects
            if series.dtype.kind in "iufb":
                return np.asarray(series.to_numpy(dtype="float64", na_value=np.nan))
        except (AttributeError, TypeError, ValueError):
            pass
    return single(values, where)


def single(values: Column, where: str) -> Column:
    """Refuse a column of lists."""
    kinds = (list, tuple, np.ndarray, Mapping)
    if values.ndim > 1 or (values.dtype.kind == "O" and any(isinstance(each, kinds) for each in values)):
        raise DataError(
            f"{where} holds lists, not single values",
            hint="give each part a column of its own, or pass arrays: from_arrays(x, y)",
        )
    return values


def _typed(written: list[str]) -> Column:
    fields = [field.strip() for field in written]
    absent = [field.lower() in _GAPS for field in fields]
    present = [field for field, gap in zip(fields, absent, strict=True) if not gap]
    whole = len(present) == len(fields)
    if whole and all(map(_WHOLE.fullmatch, fields)):
        try:
            return np.array([int(field) for field in fields], dtype=np.int64)
        except OverflowError:
            pass
    if all(map(_NUMBER.fullmatch, present)):
        numbers = (np.nan if gap else float(field) for field, gap in zip(fields, absent, strict=True))
        return np.array(list(numbers), dtype=np.float64)
    if all(field.lower() in _TRUTH for field in present):
        if whole:
            return np.array([_TRUTH[field.lower()] for field in fields], dtype=bool)
        return np.array([float(_TRUTH.get(field.lower(), np.nan)) for field in fields], dtype=np.float64)
    return np.array(fields, dtype=object if not fields else str)
