"""Large tables in text files, split by pandas or polars where one is installed.

A library reads text, value by value, and what the text means is said in `table` alone. It reads numbers only where no
rule is left to apply: a column of which it understood every field as a finite decimal number, or found a text that
marks a gap, is what `table` makes of it. Of any other column it gives the text. A file that the libraries might split
otherwise than Python's `csv` does (a quote within a field, rows of unequal length, line ends of several kinds) is left
to that.
"""

from __future__ import annotations

import csv
import io
import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .table import GAPS, Column, is_gap, is_number

__all__ = ["Bulk", "Texts", "read"]

_QUOTE, _LINE, _RETURN = map(ord, '"\n\r')
_BLOCK = 1 << 18  # bytes are looked at together
_PLACES, _PART = 16, 2048  # where a file is looked at beforehand, and how many bytes each time
_MARKS = sorted({"".join(c) for gap in GAPS for c in itertools.product(*({c, c.upper()} for c in gap))})


class Texts(NamedTuple):
    """The texts of a column that occur, and which of them each row holds."""

    texts: list[str]
    codes: NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Bulk:
    """The columns of a file in their order: numbers (int64, or float64 with NaN for a gap), or what is written.

    Attributes:
        columns: one array, or texts, a column.
        texts: the texts of the column at a position.
    """

    columns: list[Column | Texts]
    texts: Callable[[int], Texts]


@dataclass(frozen=True)
class _File:
    """The rows of a file, from the byte `start` to the byte `stop`: so many columns, parted by `separator`."""

    content: bytes
    start: int
    stop: int
    width: int
    separator: str


def read(content: bytes, start: int, width: int, separator: str, names: Sequence[int] = ()) -> Bulk | None:
    """The rows of a file as UTF-8; None without a library, or where the file is not plain.

    Args:
        start: where they begin, below the header.
        width: how many columns there are.
        names: the columns of which the text will be asked for.
    """
    library = _Pandas.found() or _Polars.found()
    stop = len(content)
    while stop > start and content[stop - 1] in b"\r\n":
        stop -= 1
    file = _File(content, start, stop, width, separator)
    if library is None or width < 2 or stop == start:
        return None
    rows = _rows(np.frombuffer(content, np.uint8)[start:stop], width, ord(separator))
    if rows is None:
        return None
    kinds = {at: str if at in names else kind for at, kind in enumerate(_kinds(file))}
    try:
        frame = library.frame(file, kinds)
        if len(frame) != rows:
            return None
        read: dict[int, Column | Texts] = {}
        for at, kind in kinds.items():
            found = library.texts(frame, at) if kind is str else library.numbers(frame, at)
            if found is not None:
                read[at] = found
        left = [at for at in kinds if at not in read]
        if left:
            frame = library.frame(file, dict.fromkeys(left, str))
            for at in left:
                numbers = library.numbers(frame, at)
                read[at] = library.texts(frame, at) if numbers is None else numbers
    except library.errors:
        return None

    def texts(at: int) -> Texts:
        return library.texts(library.frame(file, {at: str}), at)

    return Bulk([read[at] for at in kinds], texts)


def _rows(signs: NDArray[np.uint8], width: int, separator: int) -> int | None:
    """How many rows there are; None where one has another width, or quotes or line ends are not plain."""
    ends, inside, quotes = 0, False, _has(signs, _QUOTE)
    for start in range(0, len(signs), _BLOCK):
        part = signs[start : start + _BLOCK]
        line, apart = part == _LINE, part == separator
        if quotes:
            within = np.logical_xor.accumulate(part == _QUOTE) ^ inside
            inside = bool(within[-1])
            if (line & within).any():
                return None
            apart &= ~within
        at = np.flatnonzero(line | apart)
        last = at[(-ends - 1) % width :: width]  # of each row, if all are as long as they should be
        if len(last) != np.count_nonzero(line) or not line[last].all():
            return None
        ends += len(at)
    plain = not inside and (ends + 1) % width == 0 and not _has(signs, 0)
    if quotes and plain:
        at = np.flatnonzero(signs == _QUOTE)
        before, after = at[::2] - 1, at[1::2] + 1
        opened = np.isin(signs[before[before >= 0]], [_QUOTE, _LINE, separator])
        closed = np.isin(signs[after[after < len(signs)]], [_QUOTE, _LINE, _RETURN, separator])
        plain = bool(opened.all() and closed.all())
    if plain and _has(signs, _RETURN):
        plain = bool((signs[np.flatnonzero(signs == _RETURN) + 1] == _LINE).all())
    return (ends + 1) // width if plain else None


def _has(signs: NDArray[np.uint8], sign: int) -> bool:
    return any((signs[at : at + _BLOCK] == sign).any() for at in range(0, len(signs), _BLOCK))


def _kinds(file: _File) -> list[type]:
    """What columns look like at some places: int, float or str. It is a guess, and decides only what is fast."""
    places = np.linspace(file.start, max(file.start, file.stop - _PART), _PLACES).astype(int)
    parts = [file.content[at : at + _PART].decode(errors="replace") for at in sorted({*places.tolist()})]
    lines = [line for part in parts for line in part.split("\n")[1:-1]]
    rows = [row for row in csv.reader(lines, delimiter=file.separator) if len(row) == file.width]
    return [_kind([row[at].strip() for row in rows]) for at in range(file.width)]


def _kind(fields: list[str]) -> type:
    if all(is_number(field) or is_gap(field) for field in fields):
        return int if all(field.lstrip("+-").isdecimal() for field in fields) else float
    return str


class _Pandas:
    """Texts as pandas splits them; `numbers` as it infers them from all fields of a column."""

    def __init__(self, pandas: Any) -> None:
        self._pandas = pandas
        self._exact = (
            {} if int(pandas.__version__.partition(".")[0]) > 2 else {"float_precision": "round_trip"}
        )
        self.errors = (pandas.errors.ParserError,)

    @classmethod
    def found(cls) -> _Pandas | None:
        try:
            import pandas
        except ImportError:
            return None
        return cls(pandas)

    def frame(self, file: _File, kinds: Mapping[int, type]) -> Any:
        stream = io.BytesIO(file.content)
        stream.seek(file.start)
        with warnings.catch_warnings():  # of a column that is numbers for a while; its text is read then
            warnings.simplefilter("ignore", self._pandas.errors.DtypeWarning)
            return self._pandas.read_csv(
                stream,
                sep=file.separator,
                names=range(file.width),
                usecols=None if len(kinds) == file.width else list(kinds),  # which lets longer rows pass
                index_col=None,
                dtype={at: object for at, kind in kinds.items() if kind is str},
                keep_default_na=False,
                na_values={at: _MARKS for at, kind in kinds.items() if kind is not str},
                encoding="utf-8",
                engine="c",
                **self._exact,
            )

    def numbers(self, frame: Any, at: int) -> Column | None:
        values = frame[at].to_numpy()
        return values if values.dtype in (np.int64, np.float64) and not np.isinf(values).any() else None

    def texts(self, frame: Any, at: int) -> Texts:
        codes, distinct = self._pandas.factorize(frame[at])
        return Texts(distinct.tolist(), codes)


class _Polars:
    """Texts as polars splits them; `numbers` as it casts them."""

    def __init__(self, polars: Any) -> None:
        self._polars = polars
        self.errors = (polars.exceptions.PolarsError,)

    @classmethod
    def found(cls) -> _Polars | None:
        try:
            import polars
        except ImportError:
            return None
        return cls(polars)

    def frame(self, file: _File, kinds: Mapping[int, type]) -> Any:
        polars = self._polars
        types = {int: polars.Int64, float: polars.Float64}
        return polars.read_csv(
            file.content[file.start : file.stop],
            has_header=False,
            columns=list(kinds),
            separator=file.separator,
            schema={str(at): types.get(kinds.get(at, str), polars.String) for at in range(file.width)},
            ignore_errors=True,
        )

    def numbers(self, frame: Any, at: int) -> Column | None:
        texts = values = frame[str(at)]
        written = texts.dtype == self._polars.String
        if written:
            values = texts.cast(self._polars.Float64, strict=False)
        finite = values.is_finite().fill_null(False)
        if written == finite.all():
            return None
        if not written:
            return np.array(values.to_numpy())
        if not all(map(is_gap, texts.filter(~finite).fill_null("").unique().to_list())):
            return None
        return np.where(finite.to_numpy(), values.fill_null(0).to_numpy(), np.nan)

    def texts(self, frame: Any, at: int) -> Texts:
        texts = frame[str(at)].fill_null("")
        distinct = texts.unique(maintain_order=True)
        codes = texts.cast(self._polars.Enum(distinct)).to_physical()
        return Texts(distinct.to_list(), codes.to_numpy())
