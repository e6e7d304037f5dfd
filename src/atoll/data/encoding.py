"""Tables as inputs and targets. All clients of one call are brought together by the names of their columns: one order
of the features, one list of each category's values, one numbering of the labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atoll.errors import DataError, suggest

from .arrays import from_arrays
from .dataset import Dataset
from .table import Coded, Column, Table, gaps, is_number, key
from .wishes import (
    Categories,
    Classes,
    Names,
    Scale,
    read_categories,
    read_classes,
    read_missing,
    read_names,
    read_scale,
)  # fmt: skip

__all__ = ["Pair", "encode"]

Pair = tuple[Table, Table | None]
"""A client's table, and the one of its official test split."""

_BLOCK = 4096  # rows
_ALIKE = 'all clients need the same columns; rename it, or choose columns with features="A,B"'


def encode(
    tables: Mapping[str, Pair],
    label: str | None = None,
    client: str | None = None,
    features: Names | None = None,
    categorical: Categories = (),
    classes: Classes = None,
    missing: str | None = None,
    scale: Scale = None,
    ignore: int | None = None,
) -> dict[str, Dataset]:
    """Datasets of tables that belong together, by what errors call them; see `from_frame` for the settings."""
    if label is None:
        raise DataError(f"{next(iter(tables))}: which column is to be predicted?", hint='pass label="COLUMN"')
    encoding = _plan(tables, label, client, features, categorical, read_classes(classes), missing, scale)
    encoding = replace(encoding, ignore=ignore)
    return {where: encoding.dataset(where, *pair) for where, pair in tables.items()}


@dataclass(frozen=True)
class _Encoding:
    """How rows become inputs and targets; the same for all tables of a call.

    `levels` are the values of the categories, as `key` writes them; `marked` the columns that get a 0/1 for a gap;
    `scale` the constants of a column, or None where sums over the clients are to give them.
    """

    label: str
    client: str | None
    features: Sequence[str]
    levels: Mapping[str, Sequence[str]]
    classes: Any
    missing: str | None
    marked: Sequence[str]
    scale: Mapping[str, tuple[float, float]] | None
    ignore: int | None = None

    @property
    def names(self) -> list[str]:
        """What each input is called."""
        found: list[str] = []
        for column in self.features:
            found += (
                [f"{column}={level}" for level in self.levels[column]] if column in self.levels else [column]
            )
            found += [f"{column} is missing"] if column in self.marked else []
        return found

    def dataset(self, name: str, table: Table, test: Table | None) -> Dataset:
        """A table as a dataset."""
        x, y, absent, kept = self._apply(table, name)
        held = None if test is None else self._apply(test, f"{name}, test")
        columns = {} if self.client is None else {self.client: table.identifiers(self.client)[kept]}
        pair = None if held is None else held[:2]
        made = from_arrays(
            x, y, pair, self.classes, columns, natural=self.client, name=name, ignore=self.ignore
        )
        made.features = tuple(self.names)
        if self.scale is None:
            made.unscaled = np.array(
                [each in self.features and each not in self.levels for each in self.names]
            )
            for samples, missing, targets in (
                (made.train, absent, y),
                *(() if held is None else ((made.test, held[2], held[1]),)),
            ):
                assert samples is not None
                kept = slice(None) if self.ignore is None else np.asarray(targets) != self.ignore
                samples.inputs.numpy()[missing[kept]] = np.nan  # known as a gap until the sums are there
        return made

    def _apply(self, table: Table, where: str) -> tuple[NDArray[np.float32], Any, Any, Any]:
        """Inputs, targets, where an input is a gap (if that is asked for later), and which rows are left."""
        kept: Any = slice(None)
        if self.missing == "drop":
            kept = ~np.any([table.gaps(column) for column in (*self.features, self.label)], axis=0)
            if not kept.any():
                raise DataError(
                    f"{where}: every row has a gap", hint='missing="zero" or missing="mark" keeps the rows'
                )
        parts: list[NDArray[np.float32] | Coded] = []
        holes: list[NDArray[np.bool_]] = []
        for column in self.features:
            absent = table.gaps(column)[kept]
            if absent.any() and self.missing is None:
                raise _incomplete(absent, column, where)
            if column in self.levels:
                parts.append(self._category(table.coded(column), kept, column, where))
                holes += [np.zeros_like(absent)] * len(self.levels[column])
            else:
                parts.append(self._numbers(table.values(column)[kept], absent, column, where))
                holes.append(absent)
            if column in self.marked:
                parts.append(absent[:, None].astype(np.float32))
                holes.append(np.zeros_like(absent))
        targets = table.values(self.label)[kept]
        absent = gaps(targets)
        if absent.any():
            raise _incomplete(absent, self.label, where, 'missing="drop" leaves rows without a label out')
        y = targets.tolist() if targets.dtype.kind == "O" else targets
        return _side_by_side(parts, len(targets)), y, np.array(holes).T if self.scale is None else None, kept

    def _category(self, coded: Coded, kept: Any, column: str, where: str) -> Coded:
        levels, codes = self.levels[column], coded.codes[kept]
        occurs = np.bincount(codes, minlength=len(coded.distinct)) > 0
        present = occurs & ~gaps(coded.distinct)
        items = [key(value) for value in coded.distinct.tolist()]
        unknown = sorted({item for item, there in zip(items, present, strict=True) if there} - set(levels))
        if unknown:
            raise DataError(
                f"{where}: column {column!r} has values outside its categories: {', '.join(unknown[:5])}",
                hint=f'list every value, as in categorical="{column}:{"|".join([*levels, unknown[0]])}"',
            )
        one_hot = np.array([[item == level for level in levels] for item in items], np.float32)
        one_hot[~present] = 0
        return Coded(one_hot.reshape(len(items), len(levels)), codes)

    def _numbers(
        self, values: Column, absent: NDArray[np.bool_], column: str, where: str
    ) -> NDArray[np.float32]:
        if values.dtype.kind not in "biuf":
            raise DataError(
                f"{where}: column {column!r} holds {_example(values)}",
                hint=f'encode it with categorical="{column}", or list the columns to learn from with features="A,B"',
            )
        middle, unit = (self.scale or {}).get(column, (0.0, 1.0))
        if (middle, unit) != (0.0, 1.0):
            values = (values.astype(np.float64) - middle) / unit
        numbers = values.astype(np.float32)[:, None]
        return np.where(absent[:, None], np.float32(0), numbers) if absent.any() else numbers


def _side_by_side(parts: Sequence[NDArray[np.float32] | Coded], rows: int) -> NDArray[np.float32]:
    """Columns as one array, some rows at a time, which stay in a core's memory."""

    def some(part: NDArray[np.float32] | Coded, block: slice) -> Any:
        return part.distinct[part.codes[block]] if isinstance(part, Coded) else part[block]

    width = sum((part.distinct if isinstance(part, Coded) else part).shape[1] for part in parts)
    x = np.empty((rows, width), np.float32)
    for start in range(0, rows, _BLOCK):
        block = slice(start, start + _BLOCK)
        np.concatenate([some(part, block) for part in parts], axis=1, out=x[block])
    return x


def _plan(
    tables: Mapping[str, Pair],
    label: str,
    client: str | None,
    features: Names | None,
    categorical: Categories,
    classes: Any,
    missing: str | None,
    scale: Scale,
) -> _Encoding:
    """One encoding for all tables; the first one says in which order its columns stand."""
    (first, (model, _)), missing = next(iter(tables.items())), read_missing(missing)
    wanted = None if features is None else read_names(features, "features")
    for column in [label, *(wanted or ()), *([client] if client is not None else ())]:
        model.require(column, first)
    chosen = [each for each in model.names if each not in (label, client)] if wanted is None else wanted
    if not chosen:
        raise DataError(f"{first}: no feature columns are left", hint='name them with features="A,B"')
    _same_columns(tables, [label, *chosen], client, closed=wanted is None)
    every = [(where, part) for where, pair in tables.items() for part in pair if part is not None]
    text = [column for column in chosen if any(part.is_text(column) for _, part in every)]
    rows, levels = sum(part.rows for _, part in every), dict[str, list[str]]()
    for column, values in read_categories(categorical, model, text).items():
        if column not in chosen:
            model.require(column, first)
            raise DataError(f"{first}: the category {column!r} is no feature", hint=suggest(column, chosen))
        if values is not None:
            levels[column] = [key(value) for value in values]
            continue
        levels[column] = _levels([part.coded(column).distinct for _, part in every])
        if column in text:
            _few(
                rows,
                levels[column],
                f"{first}: column {column!r}",
                'list the columns to learn from with features="A,B"',
            )
    if scale is not None:
        scale = read_scale(scale)
        for column in scale if scale != "federated" else ():
            model.require(column, first)
            if column not in chosen or column in levels:
                numbers = [each for each in chosen if each not in levels]
                raise DataError(f"{first}: {column!r} is no feature to scale", hint=suggest(column, numbers))
    if not isinstance(classes, (int, str, Sequence)) and any(part.is_text(label) for _, part in every):
        classes = _levels([part.coded(label).distinct for _, part in every])
        _few(
            rows,
            classes,
            f"{first}: the label {label!r}",
            'choose another one with label="COLUMN"; numbers are written plainly, as in -1.5e3',
        )
    marked = [c for c in chosen if any(part.gaps(c).any() for _, part in every)] if missing == "mark" else []
    constants = {} if scale is None else None if scale == "federated" else dict(scale)
    return _Encoding(label, client, chosen, levels, classes, missing, marked, constants)


def _same_columns(
    tables: Mapping[str, Pair], needed: Sequence[str], client: str | None, *, closed: bool
) -> None:
    """All tables have the columns that are needed; and no others, where what is needed are all columns of the first."""
    first = next(iter(tables))
    for where, (table, test) in tables.items():
        absent = [column for column in needed if column not in table]
        more = (
            [column for column in table.names if column not in needed and column != client] if closed else []
        )
        told = [f"no column {column!r}" for column in absent[:1]]
        told += [f"a column {column!r} that {first} has not" for column in more[:1]]
        if told:
            raise DataError(f"{where} has {' and '.join(told)}", hint=_ALIKE)
        for column in needed:
            if test is not None:
                test.require(column, f"{where}, test")


def _levels(parts: Sequence[Column]) -> list[str]:
    """The values that occur, as `key` writes them: numbers by size, text by its letters."""
    found = {value for part in parts for value in part[~gaps(part)].tolist()}
    if all(isinstance(value, (bool, int, float)) for value in found):
        return list(dict.fromkeys(key(value) for value in sorted(found)))
    return sorted({key(value) for value in found})


def _few(rows: int, levels: Sequence[str], what: str, hint: str) -> None:
    """Refuse text that names rows rather than kinds of them."""
    if len(levels) > max(20, rows // 2):
        raise DataError(f"{what} holds {len(levels):,} different texts in {rows:,} rows: too many", hint=hint)


def _incomplete(absent: NDArray[np.bool_], column: str, where: str, hint: str | None = None) -> DataError:
    rows = np.flatnonzero(absent)
    return DataError(
        f"{where}: column {column!r} has no finite value in {len(rows)} of {len(absent)} rows "
        f"(row {', '.join(map(str, rows[:3].tolist()))}{', ...' if len(rows) > 3 else ''})",
        hint=hint
        or 'missing="drop" leaves these rows out, missing="zero" fills in 0, missing="mark" also adds a column that'
        ' says so; features="A,B" lists the columns to learn from',
    )


def _example(values: Column) -> str:
    """What a column of text holds, by a value that is no number."""
    texts = [str(value) for value in values.tolist() if not _number(value)]
    if texts:
        return f"values such as {texts[0]:.30}, not numbers"
    return f"numbers written as text, such as {str(values[0])!r:.30}" if len(values) else "text, not numbers"


def _number(value: Any) -> bool:
    if isinstance(value, str):
        return value == "" or is_number(value.strip())
    return value is None or isinstance(value, (bool, int, float))
