"""A person's own files: CSV, parquet and ``.npz``, read without any frame library."""

from __future__ import annotations

import csv
import io
import lzma
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from atoll.errors import DataError, MissingExtraError

from .arrays import from_arrays
from .dataset import Dataset
from .delimited import read_delimited
from .frames import from_frame
from .table import Column, Table, once, single
from .wishes import Categories, Classes, Names, Scale, read_classes

__all__ = ["TABLES", "arrays_of", "from_file", "read_table"]

TABLES = (".csv", ".tsv", ".parquet", ".pq")
_PACKED = (".gz", ".xz", ".bz2")


def from_file(
    path: str | Path,
    label: str | None = None,
    client: str | None = None,
    *,
    features: Names | None = None,
    categorical: Categories = (),
    classes: Classes = None,
    missing: str | None = None,
    scale: Scale = None,
    test: str | Path | None = None,
    name: str | None = None,
    ignore: int | None = None,
) -> Dataset:
    """A dataset from a file: ``.csv``, ``.tsv`` (also ``.gz``, ``.xz``, ``.bz2``), ``.parquet`` or ``.npz``.

    Tables need `label` and take the settings of `from_frame`. An ``.npz`` file holds ``x`` and ``y``, and
    ``x_test`` and ``y_test`` for an official test split; all its other arrays of one value per training row
    become columns, and `client` names the natural one. For both, `ignore` is the label of targets that do not count,
    as in `from_arrays`.

    Raises `DataError` for files that are absent, damaged or of an unknown kind, and `MissingExtraError` where
    parquet is not installed.
    """
    where = Path(path)
    title = name if name is not None else where.name
    if where.suffix.lower() == ".npz":
        given = {
            "test": test,
            "features": features,
            "categorical": categorical,
            "missing": missing,
            "scale": scale,
        }
        wrong = [key for key, value in given.items() if value not in (None, ())]
        if wrong:
            raise DataError(
                f"{title}: an .npz file holds arrays, not a table",
                hint=f"{' and '.join(wrong)} are for tables",
            )
        return _from_npz(where, label, client, title, read_classes(classes), ignore)
    return from_frame(
        read_table(where, () if client is None else (client,)),
        label,
        features,
        client,
        categorical=categorical,
        classes=classes,
        missing=missing,
        scale=scale,
        test=None if test is None else read_table(Path(test)),
        name=title,
        ignore=ignore,
    )


def read_table(path: Path, names: Sequence[str] = ()) -> Table:
    """The table in a file, of which these columns hold names.

    Raises `DataError` for one that is absent, damaged or of an unknown kind.
    """
    kinds = [suffix.lower() for suffix in path.suffixes]
    while kinds and kinds[-1] in _PACKED:
        kinds.pop()
    kind = kinds[-1] if kinds else ""
    if kind not in TABLES:
        raise DataError(
            f"{path}: files that end in {kind or 'nothing'!r} are not known",
            hint="use .csv, .tsv (also .gz, .xz, .bz2), .parquet or .npz",
        )
    parquet = kind in (".parquet", ".pq")
    table: Table = _open(_read_parquet if parquet else partial(read_delimited, names=names), path)
    return table


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


def _read_parquet(path: Path) -> Table:
    try:
        from pyarrow import parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "frames", "reading parquet files") from None
    table = parquet.read_table(io.BytesIO(path.read_bytes()))
    once(table.column_names, str(path))
    columns = {
        name: single(np.asarray(table[name].to_numpy()), f"{path}: column {name!r}")
        for name in table.column_names
    }
    return Table(columns, str(path))


def arrays_of(path: Path) -> dict[str, Column]:
    """The arrays of an .npz file.  Raises DataError for one that is absent, damaged or holds Python objects."""

    def read(where: Path) -> dict[str, Column]:
        with where.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            return {key: _plain(stored, key, where) for key in stored.files}

    found: dict[str, Column] = _open(read, path)
    return found


def _from_npz(
    path: Path, label: str | None, client: str | None, name: str, classes: Classes, ignore: int | None
) -> Dataset:
    arrays = arrays_of(path)
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
    return from_arrays(
        arrays["x"], arrays[target], held, classes, columns, natural=client, name=name, ignore=ignore
    )


def _plain(stored: Any, key: str, path: Path) -> Column:
    try:
        return np.asarray(stored[key])
    except ValueError:
        raise DataError(
            f"{path}: the array {key!r} holds Python objects, which are not read, since they can run code",
            hint=f'if you trust the file and it holds {{"x": ..., "y": ...}}, rewrite it in Python: '
            f"numpy.savez({str(path)!r}, **numpy.load({str(path)!r}, allow_pickle=True)[{key!r}].item())",
        ) from None
