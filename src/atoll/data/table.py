"""`Table`: columns by name, whatever they were read from; what is a number, what is a gap, what is a name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from atoll.errors import DataError, suggest

__all__ = [
    "Coded",
    "Column",
    "Table",
    "Written",
    "collected",
    "gaps",
    "is_frame",
    "is_gap",
    "is_number",
    "key",
    "once",
    "single",
    "unnamed",
]

Column = NDArray[Any]

_SIGNED = b"+-0123456789"
_PLAIN = _SIGNED + b".eE"
_CANONICAL = re.compile(r"-?[1-9]\d{0,17}|0", re.ASCII)
_UNNAMED = re.compile(r"(Unnamed: \d+)?", re.ASCII)
GAPS = {"", "na", "n/a", "#n/a", "nan", "null", "none", "?", "-", "."}  # among numbers
_TRUTH = {"true": True, "false": False}


class Coded(NamedTuple):
    """A column by its values: row i holds ``distinct[codes[i]]``. Values that differ as written may be the same one."""

    distinct: Column
    codes: NDArray[np.integer[Any]]

    def whole(self) -> Column:
        """One value a row."""
        return cast(Column, self.distinct[self.codes])


@dataclass(frozen=True)
class Written:
    """The fields of a column as a text file writes them.

    Attributes:
        rows: how many there are.
        read: the texts that occur, and which of them each row holds; or one text a row, and None.
    """

    rows: int
    read: Callable[[], tuple[list[str], NDArray[np.integer[Any]] | None]]

    def __len__(self) -> int:
        return self.rows


def is_number(text: str) -> bool:
    """Whether a text is a plain decimal number, such as ``-1.5e3``; ``1_000`` and ``1,5`` are none."""
    return _read([text], float, _PLAIN) is not None


def is_gap(text: str) -> bool:
    """Whether a text says, among numbers, that there is none."""
    return text.strip().lower() in GAPS


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
        written: how the fields of a column are read that came as numbers out of a text file.
    """

    def __init__(
        self,
        columns: Mapping[str, Column | Written],
        name: str,
        written: Callable[[str], Written] | None = None,
    ) -> None:
        self.name = name
        self._columns = {str(each): values for each, values in columns.items() if not unnamed(str(each))}
        self._written = written
        self._typed: dict[str, Column | Coded] = {}
        self._codes: dict[str, Coded] = {}
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

    def _found(self, column: str) -> Column | Coded:
        """A column as it can be had: by its values where they are known, one a row elsewhere."""
        if column not in self._typed:
            values = self._columns[column]
            self._typed[column] = values if isinstance(values, np.ndarray) else _by_value(values, _typed)
        return self._typed[column]

    def values(self, column: str) -> Column:
        """A column as whole numbers, numbers (NaN where there is none), truth values or text."""
        found = self._found(column)
        return found.whole() if isinstance(found, Coded) else found

    def coded(self, column: str) -> Coded:
        """The same by the values that occur; objects, of which equal ones may differ in name, row by row."""
        if column not in self._codes:
            found = self._found(column)
            self._codes[column] = found if isinstance(found, Coded) else _coded(found)
        return self._codes[column]

    def is_text(self, column: str) -> bool:
        """Whether a column holds text, or objects."""
        found = self._found(column)
        return (found.distinct if isinstance(found, Coded) else found).dtype.kind in "OUS"

    def gaps(self, column: str) -> NDArray[np.bool_]:
        """Where a column has no value; see `gaps`."""
        found = self._found(column)
        return gaps(found.distinct)[found.codes] if isinstance(found, Coded) else gaps(found)

    def identifiers(self, column: str) -> Column:
        """A column whose values are names: text as it is written, and numbers only where that loses nothing."""
        values = self._columns[column]
        if isinstance(values, np.ndarray):
            if self._written is None:
                return values
            values = self._columns[column] = self._written(column)
        found = _by_value(values, _names)
        return found.whole() if isinstance(found, Coded) else found

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


def _by_value(written: Written, read: Callable[[Sequence[str]], Column]) -> Column | Coded:
    """What is written, read; what a column is follows from the texts that occur, however often each does."""
    texts, codes = written.read()
    return read(texts) if codes is None else Coded(read(texts), codes)


def _coded(values: Column) -> Coded:
    if values.dtype.kind == "O":
        return Coded(values, np.arange(len(values)))
    if values.dtype.kind not in "US":
        return Coded(*np.unique(values, return_inverse=True))
    texts = values.tolist()
    codes = {text: code for code, text in enumerate(dict.fromkeys(texts))}
    return Coded(
        np.array(list(codes), dtype=values.dtype),
        np.fromiter(map(codes.__getitem__, texts), np.int64, len(texts)),
    )


def _names(texts: Sequence[str]) -> Column:
    if texts and all(map(_CANONICAL.fullmatch, texts)):
        return np.array(list(map(int, texts)), dtype=np.int64)
    return np.array(texts, dtype=str if texts else object)


def _typed(written: Sequence[str]) -> Column:
    fields = list(map(str.strip, written))
    whole = _read(fields, int, _SIGNED)
    if whole is not None:
        try:
            return np.array(whole, dtype=np.int64)
        except OverflowError:
            pass
    numbers = _read(fields, float, _PLAIN)
    if numbers is not None:
        return np.array(numbers, dtype=np.float64)
    marks = set(filter(is_gap, set(fields)))
    numbers = _read([field for field in fields if field not in marks], float, _PLAIN)
    if numbers is not None:
        found = np.full(len(fields), np.nan)
        found[[field not in marks for field in fields]] = numbers
        return found
    if all(field.lower() in _TRUTH for field in fields if field not in marks):
        truth = [_TRUTH.get(field.lower(), np.nan) for field in fields]
        return np.array(truth, dtype=np.float64 if marks else bool)
    return np.array(fields, dtype=str)


def _read(fields: Sequence[str], number: Callable[[str], Any], of: bytes) -> list[Any] | None:
    """Numbers, or None where a text is none or is not made of these characters alone."""
    joined = "".join(fields)
    if not joined.isascii() or joined.encode().translate(None, of):
        return None
    try:
        return list(map(number, fields))
    except ValueError:
        return None
