"""A person's own files: CSV, parquet and ``.npz``, read without any frame library."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO, cast

import numpy as np

from atoll.errors import DataError, MissingExtraError

from .arrays import Classes, from_arrays
from .dataset import Dataset
from .frames import Categories, Column, from_frame

__all__ = ["from_file"]


def from_file(
    path: str | Path,
    label: str | None = None,
    client: str | None = None,
    *,
    features: Sequence[str] | None = None,
    categorical: Categories = (),
    classes: Classes = None,
    test: str | Path | None = None,
    name: str | None = None,
) -> Dataset:
    """A dataset from a file: ``.csv``, ``.tsv`` (also ``.gz``, ``.xz``, ``.bz2``), ``.parquet`` or ``.npz``.

    Tables need `label` and take the settings of `from_frame`. An ``.npz`` file holds ``x`` and ``y``, and
    ``x_test`` and ``y_test`` for an official test split; all its other arrays of one value per training row
    become columns, and `client` names the natural one.

    Raises `DataError` for files that are absent, damaged or of an unknown kind, and `MissingExtraError` where
    parquet is not installed.
    """
    where = Path(path)
    title = name if name is not None else where.name
    if where.suffix.lower() == ".npz":
        if test is not None or features is not None or categorical:
            raise DataError(
                f"{title}: an .npz file holds arrays, not a table",
                hint="test, features and categorical are for tables",
            )
        return _from_npz(where, label, client, title, classes)
    if label is None:
        raise DataError(f"{title}: which column is to be predicted?", hint='pass label="COLUMN"')
    read = _reader(where)
    held = None if test is None else _open(_reader(Path(test)), Path(test))
    return from_frame(
        _open(read, where),
        label,
        features,
        client,
        categorical=categorical,
        classes=classes,
        test=held,
        name=title,
    )


def _reader(path: Path) -> Callable[[Path], dict[str, Column]]:
    kinds = [suffix.lower() for suffix in path.suffixes]
    while kinds and kinds[-1] in (".gz", ".xz", ".bz2"):
        kinds.pop()
    kind = kinds[-1] if kinds else ""
    if kind in (".csv", ".tsv"):
        return _read_csv
    if kind in (".parquet", ".pq"):
        return _read_parquet
    raise DataError(
        f"{path}: files that end in {kind or 'nothing'!r} are not known",
        hint="use .csv, .tsv (also .gz, .xz, .bz2), .parquet or .npz",
    )


def _open(read: Callable[[Path], Any], path: Path) -> Any:
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    try:
        return read(path)
    except MissingExtraError:
        raise
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, lzma.LZMAError, csv.Error) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: cannot be read ({error})", hint="the file may be damaged") from error


def _read_csv(path: Path) -> dict[str, Column]:
    """A CSV file with a header; whole numbers, numbers or text by column. An empty field is missing."""
    openers: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
    opener = openers.get(path.suffix.lower(), open)
    delimiter = "\t" if ".tsv" in [suffix.lower() for suffix in path.suffixes] else ","
    with cast(TextIO, opener(path, "rt", encoding="utf-8-sig", newline="")) as stream:
        rows = csv.reader(stream, delimiter=delimiter)
        header = next(rows, [])
        body = [row for row in rows if row]
    if not header or len(set(header)) != len(header):
        raise DataError(f"{path}: the first line must name the columns, each once")
    for number, row in enumerate(body):
        if len(row) != len(header):
            raise DataError(f"{path}: data row {number} has {len(row)} fields, the header {len(header)}")
    return {name: _typed([row[index].strip() for row in body]) for index, name in enumerate(header)}


def _typed(fields: list[str]) -> Column:
    present = [field for field in fields if field != ""]
    try:
        if len(present) == len(fields):
            return np.array([int(field) for field in fields], dtype=np.int64)
    except (ValueError, OverflowError):
        pass
    try:
        return np.array([float(field) if field != "" else np.nan for field in fields], dtype=np.float64)
    except ValueError:
        return np.array(fields, dtype=object if not fields else str)


def _read_parquet(path: Path) -> dict[str, Column]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "frames", "reading parquet files") from None
    table = parquet.read_table(io.BytesIO(path.read_bytes()))
    return {name: np.asarray(table[name].to_numpy()) for name in table.column_names}


def _from_npz(path: Path, label: str | None, client: str | None, name: str, classes: Classes) -> Dataset:
    def read(where: Path) -> dict[str, Column]:
        with where.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            return {key: stored[key] for key in stored.files}

    arrays = _open(read, path)
    target = label if label is not None else "y"
    for wanted in ("x", target):
        if wanted not in arrays:
            raise DataError(f"{name}: there is no array {wanted!r} (it has: {', '.join(arrays)})",
                            hint="store inputs as x and targets as y")  # fmt: skip
    held = (
        (arrays["x_test"], arrays[f"{target}_test"]) if {"x_test", f"{target}_test"} <= set(arrays) else None
    )
    rows = len(arrays["x"])
    columns = {
        key: value
        for key, value in arrays.items()
        if key not in ("x", target, "x_test", f"{target}_test") and value.ndim == 1 and len(value) == rows
    }
    return from_arrays(arrays["x"], arrays[target], held, classes, columns, natural=client, name=name)
