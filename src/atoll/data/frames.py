"""A person's own tables: pandas and polars frames, or plain mappings of columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from atoll.errors import DataError, suggest

from .arrays import Classes, from_arrays
from .dataset import Dataset

__all__ = ["Categories", "Column", "from_frame", "is_frame"]

Column = NDArray[Any]
Categories = Sequence[str] | Mapping[str, Sequence[Any]]


def is_frame(value: Any) -> bool:
    """A pandas or polars data frame, told by the package it comes from."""
    return type(value).__module__.partition(".")[0] in ("pandas", "polars") and hasattr(value, "columns")


def from_frame(
    frame: Any,
    label: str,
    features: Sequence[str] | None = None,
    client: str | None = None,
    *,
    categorical: Categories = (),
    classes: Classes = None,
    test: Any = None,
    name: str = "frame",
) -> Dataset:
    """A dataset from a pandas or polars frame; inputs are float32 of shape (rows, features).

    Args:
        frame: the table; a mapping of equally long columns works too.
        label: the column to predict.
        features: the columns to predict from; by default all but `label` and `client`.
        client: the column that says which client a row belongs to; it becomes the natural column.
        categorical: columns to encode one-hot, by their sorted values, or by ``{column: values}``. Fix the
            values where clients encode their tables apart from each other.
        classes, name: as in `from_arrays`.
        test: an official test table with the same columns.

    Raises `DataError` that names the column and counts the rows for missing values and for text in a feature.
    """
    table = _table(frame)
    for wanted in [label, *(features or ()), *([client] if client is not None else ()), *categorical]:
        if wanted not in table:
            raise DataError(
                f"{name}: there is no column {wanted!r}", hint=suggest(str(wanted), map(str, table))
            )
    chosen = list(features) if features is not None else [c for c in table if c not in (label, client)]
    if not chosen:
        raise DataError(f"{name}: no feature columns are left", hint="name them with features=[...]")
    levels = {
        column: list(categorical[column]) if isinstance(categorical, Mapping) else _levels(table[column])
        for column in categorical
    }
    x, y = _features(table, chosen, levels, name), _label(table, label, name)
    held = None
    if test is not None:
        other = _table(test)
        for wanted in [label, *chosen]:
            if wanted not in other:
                raise DataError(f"{name}, test: there is no column {wanted!r}")
        held = _features(other, chosen, levels, f"{name}, test"), _label(other, label, f"{name}, test")
    columns = {} if client is None else {client: table[client]}
    return from_arrays(x, y, held, classes, columns, natural=client, name=name)


def _table(frame: Any) -> dict[str, Column]:
    if isinstance(frame, Mapping):
        return {str(key): np.asarray(value) for key, value in frame.items()}
    if not is_frame(frame):
        raise DataError(
            f"a {type(frame).__name__} is not a frame",
            hint="pass a pandas or polars DataFrame, or a mapping of columns",
        )
    return {str(column): _column(frame[column]) for column in frame.columns}


def _column(series: Any) -> Column:
    values = np.asarray(series.to_numpy())
    if values.dtype.kind == "O" and type(series).__module__.startswith("pandas"):
        try:  # nullable numbers come as objects
            if series.dtype.kind in "iufb":
                return np.asarray(series.to_numpy(dtype="float64", na_value=np.nan))
        except (AttributeError, TypeError, ValueError):
            pass
    return values


def _missing(values: Column) -> NDArray[np.bool_]:
    if values.dtype.kind == "f":
        return ~np.isfinite(values)
    if values.dtype.kind == "O":
        return np.array(
            [value is None or value != value or str(value) == "<NA>" for value in values], dtype=bool
        )
    if values.dtype.kind in "US":
        return cast(NDArray[np.bool_], values == "")
    return np.zeros(len(values), dtype=bool)


def _complete(values: Column, column: str, name: str) -> None:
    missing = _missing(values)
    if missing.any():
        rows = np.flatnonzero(missing)
        raise DataError(
            f"{name}: column {column!r} has no finite value in {len(rows)} of {len(values)} rows "
            f"(row {', '.join(map(str, rows[:3].tolist()))}{', ...' if len(rows) > 3 else ''})",
            hint="fill the gaps, drop the rows, or leave the column out with features=[...]",
        )


def _levels(values: Column) -> list[Any]:
    return sorted(set(values[~_missing(values)].tolist()), key=lambda value: (str(type(value)), value))


def _features(
    table: Mapping[str, Column], chosen: Sequence[str], levels: Mapping[str, list[Any]], name: str
) -> NDArray[np.float32]:
    parts = []
    for column in chosen:
        values = table[column]
        _complete(values, column, name)
        if column in levels:
            items = values.tolist()
            unknown = sorted({str(value) for value in items} - {str(value) for value in levels[column]})
            if unknown:
                raise DataError(
                    f"{name}: column {column!r} has values outside its categories: {', '.join(unknown[:5])}",
                    hint="list every value in categorical={column: [...]}",
                )
            parts.append(
                np.array([[value == level for level in levels[column]] for value in items], np.float32)
            )
        elif values.dtype.kind in "biuf":
            parts.append(values.astype(np.float32)[:, None])
        else:
            raise DataError(
                f"{name}: column {column!r} holds {_example(values)}, not numbers",
                hint=f"encode it with categorical=[{column!r}], or leave it out with features=[...]",
            )
    return np.concatenate(parts, axis=1)


def _example(values: Column) -> str:
    return f"values such as {values[0]!s:.30}" if len(values) else "text"


def _label(table: Mapping[str, Column], label: str, name: str) -> Any:
    values = table[label]
    _complete(values, label, name)
    if values.dtype.kind == "O":
        return values.tolist()
    return values
