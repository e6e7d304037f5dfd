"""Tables in text files: which character separates, how a decimal is written, what the header says."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from atoll.errors import DataError

from .table import Table, once

__all__ = ["read_delimited"]

_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
_COMMA = re.compile(r"[+-]?\d+,\d+([eE][+-]?\d+)?", re.ASCII)


def read_delimited(path: Path) -> Table:
    """A ``.csv`` or ``.tsv`` file with a header, as UTF-8 text (also compressed).

    The separator is the one of comma, semicolon, tab and ``|`` that makes most columns of the header; a file whose
    separator is always followed by a space is read without these. Where the comma separates nothing, ``1,5`` is a
    number.

    Raises DataError for other encodings, an empty file, columns of the same name, and rows of another length.
    """
    with _OPENERS.get(path.suffix.lower(), open)(path, "rb") as stream:
        content: bytes = stream.read()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: cannot be read as UTF-8 text (byte {error.start} is {content[error.start]:#04x})",
            hint='save it as UTF-8; spreadsheets call that "CSV UTF-8"',
        ) from None
    first = text.lstrip("\r\n").partition("\n")[0]
    if not first.strip():
        raise DataError(f"{path}: the file is empty", hint="the first line names the columns")
    usual = "\t" if ".tsv" in [suffix.lower() for suffix in path.suffixes] else ","
    separator = max(
        (usual, ",", ";", "\t", "|"), key=lambda each: len(next(csv.reader([first], delimiter=each)))
    )
    spaced = separator != "\t" and first.count(separator) == first.count(f"{separator} ") > 0
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=spaced)
    header = [name.strip() for name in next(row for row in rows if row)]
    body = [row for row in rows if row]
    once(header, str(path))
    for number, row in enumerate(body):
        if len(row) != len(header):
            raise DataError(
                f"{path}: data row {number} has {len(row)} fields, the header {len(header)}",
                hint=f"the columns are separated by {separator!r}; put quotes around text that holds it",
            )
    if not body:
        raise DataError(f"{path}: there are no rows below the header")
    columns = {name: [row[index] for row in body] for index, name in enumerate(header)}
    return Table(
        columns if separator == "," else {name: _points(fields) for name, fields in columns.items()},
        str(path),
    )


def _points(fields: list[str]) -> list[str]:
    """Numbers with a decimal comma as numbers with a point, where all that has a comma is such a number."""
    with_comma = [field for field in fields if "," in field]
    if with_comma and all(_COMMA.fullmatch(field.strip()) for field in with_comma):
        return [field.replace(",", ".") for field in fields]
    return fields
