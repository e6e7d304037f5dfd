"""Tables in text files: which character separates, how a decimal is written, what the header says."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import itertools
import lzma
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from atoll.errors import DataError

from . import bulk
from .table import Table, Written, once

__all__ = ["read_delimited"]

_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
_COMMA = re.compile(r"[+-]?\d+,\d+([eE][+-]?\d+)?", re.ASCII)
_LARGE = 1 << 20  # bytes; smaller files are read before a frame library is imported
_ROWS = 500  # are split at a time; more would be looked through as garbage again and again


def read_delimited(path: Path, names: Sequence[str] = ()) -> Table:
    """A ``.csv`` or ``.tsv`` file with a header, as UTF-8 text (also compressed).

    The separator is the one of comma, semicolon, tab and ``|`` that makes most columns of the header; a file whose
    separator is always followed by a space is read without these. Where the comma separates nothing, ``1,5`` is a
    number. Large files are read by pandas or polars where one is installed, with the same result; sooner where the
    columns are known whose values are names.

    Raises DataError for other encodings, an empty file, columns of the same name, and rows of another length.
    """
    with _OPENERS.get(path.suffix.lower(), open)(path, "rb") as stream:
        content: bytes = stream.read()
    try:
        if not content.isascii():
            content.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: cannot be read as UTF-8 text (byte {error.start} is {content[error.start]:#04x})",
            hint='save it as UTF-8; spreadsheets call that "CSV UTF-8"',
        ) from None
    start = 3 * content.startswith(b"\xef\xbb\xbf")
    while content[start : start + 1] in (b"\r", b"\n"):
        start += 1
    end = content.find(b"\n", start) % (len(content) + 1)
    first = content[start:end].decode()
    if not first.strip():
        raise DataError(f"{path}: the file is empty", hint="the first line names the columns")
    usual = "\t" if ".tsv" in [suffix.lower() for suffix in path.suffixes] else ","
    separator = max(
        (usual, ",", ";", "\t", "|"), key=lambda each: len(next(csv.reader([first], delimiter=each)))
    )
    spaced = separator != "\t" and first.count(separator) == first.count(f"{separator} ") > 0
    text = io.TextIOWrapper(io.BytesIO(content), "utf-8-sig", newline="")
    rows = filter(None, csv.reader(text, delimiter=separator, skipinitialspace=spaced))
    top = next(rows)
    header = [name.strip() for name in top]
    once(header, str(path))
    given: Callable[[Written], Written] = _points if separator != "," else lambda each: each
    one_line = next(csv.reader([first], delimiter=separator)) == top
    index = {name: at for at, name in enumerate(header)}
    found = None
    if len(content) >= _LARGE and one_line and not spaced:
        text_of = [index[name] for name in names if name in index]
        found = bulk.read(content, end + 1, len(header), separator, text_of)
    if found is not None:
        columns = [
            each if isinstance(each, np.ndarray) else given(_by_value(*each)) for each in found.columns
        ]
        named = dict(zip(header, columns, strict=True))
        return Table(named, str(path), lambda name: given(_by_value(*found.texts(index[name]))))
    count, packed = 0, [list[bytes]() for _ in header]
    while several := list(itertools.islice(rows, _ROWS)):
        for number, row in enumerate(several, count):
            if len(row) != len(header):
                raise DataError(
                    f"{path}: data row {number} has {len(row)} fields, the header {len(header)}",
                    hint=f"the columns are separated by {separator!r}; put quotes around text that holds it",
                )
        for parts, fields in zip(packed, zip(*several, strict=True), strict=True):
            parts.append(msgspec.msgpack.encode(fields))
        count += len(several)
    if not count:
        raise DataError(f"{path}: there are no rows below the header")
    split = (given(Written(count, partial(_unpacked, parts))) for parts in packed)
    return Table(dict(zip(header, split, strict=True)), str(path))


def _unpacked(packed: list[bytes]) -> tuple[list[str], None]:
    decoder = msgspec.msgpack.Decoder(list[str])
    return list(itertools.chain.from_iterable(map(decoder.decode, packed))), None


def _by_value(texts: list[str], codes: NDArray[Any]) -> Written:
    return Written(len(codes), lambda: (texts, codes))


def _points(written: Written) -> Written:
    """Numbers with a decimal comma as numbers with a point, where all that has a comma is such a number."""

    def read() -> tuple[list[str], NDArray[Any] | None]:
        fields, codes = written.read()
        with_comma = [field for field in fields if "," in field]
        if with_comma and all(_COMMA.fullmatch(field.strip()) for field in with_comma):
            fields = [field.replace(",", ".") for field in fields]
        return fields, codes

    return Written(written.rows, read)
