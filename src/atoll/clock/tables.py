"""Rows about devices out of CSV, JSON or a mapping, as they are written, each with its place for errors."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from atoll.errors import DataError, suggest

from .draws import Floats

__all__ = ["Rows", "of_mapping", "read"]

_NUMBERS = ({int}, {float}, {int, float}, {str})


@dataclass
class Rows:
    """Columns of the same length: text out of CSV, numbers, lists and text out of JSON; None where nothing is written.

    Args:
        source: the file, in errors.
        ids: which client each row is of, or None where rows do not say so.
        columns: all others, by name.
        lines: in which line of the file each row ends; None where rows have names only.
    """

    source: str
    ids: list[str] | None
    columns: dict[str, list[Any]]
    lines: list[int] | None = None

    def __len__(self) -> int:
        return len(self.ids if self.ids is not None else next(iter(self.columns.values()), ()))

    def refuse(self, row: int, message: str, hint: str | None = None) -> NoReturn:
        """A DataError about one row."""
        if self.lines is not None:
            place = f"{self.source}, line {self.lines[row]}"
        elif self.ids is not None:
            place = f"{self.source}, client {self.ids[row]!r}"
        else:
            place = f"{self.source}, entry {row + 1}"
        raise DataError(f"{place}: {message}", hint=hint)

    def numbers(self, name: str, values: list[Any], owners: Sequence[int] | None = None) -> Floats:
        """Values of column `name` as numbers. `owners`: the row of each value, where they are not one a row."""
        if {*map(type, values)} in _NUMBERS:
            try:
                return np.array(values, dtype=np.float64)
            except (ValueError, OverflowError):
                pass  # one of them is bad: which?
        found = np.zeros(len(values))
        for at, value in enumerate(values):
            row = at if owners is None else owners[at]
            if value is None or value == "":
                self.refuse(row, f"{name} is empty", "write a number in every row, or leave the column out")
            try:
                if isinstance(value, bool):
                    raise ValueError
                found[at] = float(value)
            except (TypeError, ValueError, OverflowError):
                self.refuse(row, f"{name} = {value!r} is not a number")
        return found


def read(path: Path) -> Rows:
    """The rows of a ``.csv`` or ``.json`` file.

    CSV has a header, commas (or semicolons, or tabs) between columns, and a column "client". JSON is an object of
    objects, by client, or a list of objects. Raises DataError for any other file, for rows of another length, and for a
    client or a column that is there twice.
    """
    kind = path.suffix.lower()
    if kind not in (".csv", ".json"):
        raise DataError(f"devices {str(path)!r} is neither CSV nor JSON", hint="name it .csv or .json")
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        message = f"{path}: cannot be read as UTF-8 text (byte {error.start})"
        raise DataError(message, hint="a pickle has to be written as JSON first") from None
    except OSError as error:
        raise DataError(f"devices {str(path)!r} cannot be read: {error.strerror}") from None
    if not text.strip():
        raise DataError(f"{path}: the file is empty")
    return _csv(text, str(path)) if kind == ".csv" else _json(text, str(path))


def of_mapping(given: Mapping[Any, Any], source: str) -> Rows:
    """The rows of {client: {field: value}}. Raises DataError for what is no such mapping."""
    return _rows([str(each) for each in given], given.values(), source)


def _csv(text: str, source: str) -> Rows:
    first = text.lstrip("\r\n").splitlines()[0]
    separator = max(",;\t", key=lambda each: len(next(csv.reader([first], delimiter=each))))
    reader = csv.reader(text.splitlines(keepends=True), delimiter=separator, skipinitialspace=True)
    header: list[str] = []
    rows, lines = [], []
    try:
        for row in reader:
            if not any(row):
                continue
            if not header:
                header = [name.strip() for name in row]
                continue
            if len(row) != len(header):
                message = (
                    f"{source}, line {reader.line_num}: {len(row)} fields, and the header has {len(header)}"
                )
                raise DataError(message, hint=f"the columns are separated by {separator!r}")
            rows.append(row)
            lines.append(reader.line_num)
    except csv.Error as error:
        raise DataError(f"{source}, line {reader.line_num}: {error}") from None
    for name in header:
        if header.count(name) > 1:
            raise DataError(f"{source}: column {name!r} is there twice")
    if not rows:
        raise DataError(f"{source}: there are no rows below the header")
    columns = {
        name: [each.strip() for each in column]
        for name, column in zip(header, zip(*rows, strict=True), strict=True)
    }
    return _unique(Rows(source, columns.pop("client", None), columns, lines))


def _json(text: str, source: str) -> Rows:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            double = next(name for at, name in enumerate(names) if name in names[:at])
            raise DataError(f"{source}: {double!r} is there twice")
        return found

    try:
        given = json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise DataError(f"{source}, line {error.lineno}: this is not JSON: {error.msg}") from None
    except RecursionError:
        raise DataError(f"{source}: this is nested too deeply") from None
    if isinstance(given, dict):
        return of_mapping(given, source)
    if not isinstance(given, list):
        raise DataError(f"{source}: this is neither an object, by client, nor a list of objects")
    rows = _rows(None, given, source)
    if "client" in rows.columns:
        rows.ids = [str(each) for each in rows.columns.pop("client")]
    return _unique(rows)


def _rows(ids: list[str] | None, given: Iterable[Any], source: str) -> Rows:
    entries = list(given)
    if not entries:
        raise DataError(f"{source}: there are no devices")
    rows = Rows(source, ids, {"": entries})
    names: dict[str, None] = {}
    for row, entry in enumerate(entries):
        if not isinstance(entry, Mapping):
            rows.refuse(row, f"{entry!r} is not an object with fields", 'such as {"speed": 100}')
        names |= dict.fromkeys(entry)
    rows.columns = {name: [entry.get(name) for entry in entries] for name in names}
    return rows


def _unique(rows: Rows) -> Rows:
    """The rows, where no client is there twice."""
    seen: dict[str, int] = {}
    for row, client in enumerate(rows.ids or ()):
        if seen.setdefault(client, row) != row:
            lines = rows.lines
            first = f" (before in line {lines[seen[client]]})" if lines else ""
            rows.refuse(row, f"client {client!r} is there twice{first}", "write one row for each client")
    return rows


def check_columns(rows: Rows, known: Iterable[str], ignored: Iterable[str]) -> None:
    """Raises DataError for a column that means nothing; drops those that are `ignored`."""
    for name in [*rows.columns]:
        if name in ignored:
            del rows.columns[name]
        elif name not in known:
            raise DataError(f"{rows.source}: unknown column {name!r}", hint=suggest(name, known))
