"""Columns that one party changes by itself: it learns from its training rows, and applies what it learned to any."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from atoll.errors import ConfigError, DataError
from atoll.tensors import Record, Tensors
from atoll.vertical.side import FloatArray, Side

__all__ = ["Impute", "OneHot", "Standardise", "Transform", "columns_of", "named"]


@dataclass(frozen=True)
class Transform(ABC):
    """Settings. What is learned is a record of its own, which `atoll.codec` writes; it stays with its party.

    `fit` learns of a side, and `apply` makes a side of another one with the same columns.
    """

    name: ClassVar[str]

    @abstractmethod
    def fit(self, side: Side) -> Record:
        """What is learned of these rows.  Raises DataError where nothing can be."""

    @abstractmethod
    def apply(self, side: Side, learned: Record) -> Side:
        """Other rows, or the same.  Raises DataError where their columns are others."""


def named(columns: Sequence[str]) -> Record:
    """Names of columns as a record: a column may be called as no field can be."""
    return Record({str(at): name for at, name in enumerate(columns)})


def columns_of(side: Side, learned: Record) -> None:
    """Raise DataError where a side has other columns than what was learned from."""
    known = tuple(learned.columns.values())
    if side.columns != known:
        missing = [name for name in known if name not in side.columns]
        more = [name for name in side.columns if name not in known]
        raise DataError(
            "the columns are not those that were learned from",
            hint=f"missing: {', '.join(missing) or 'none'}; new: {', '.join(more) or 'none'}; order counts",
        )


@dataclass(frozen=True)
class Standardise(Transform):
    """(x - mean) / deviation, column by column; the deviation is that of the rows (divided by n, not n - 1).

    Missing values do not count and stay missing. A column with one value becomes 0.
    """

    name: ClassVar[str] = "standardise"

    def fit(self, side: Side) -> Record:
        present = ~np.isnan(side.x)
        count = np.maximum(present.sum(0), 1)
        mean = np.where(present, side.x, 0).sum(0) / count
        deviation = np.sqrt((np.where(present, side.x - mean, 0) ** 2).sum(0) / count)
        # What is left of rounding is no deviation.
        deviation = np.where(deviation > 1e-12 * np.maximum(1, np.abs(mean)), deviation, math.inf)
        return Record(columns=named(side.columns), mean=_tensor(mean), deviation=_tensor(deviation))

    def apply(self, side: Side, learned: Record) -> Side:
        columns_of(side, learned)
        return replace(side, x=(side.x - learned.mean.numpy()) / learned.deviation.numpy())


@dataclass(frozen=True)
class Impute(Transform):
    """A value in the place of missing ones: each column's mean or median, or a constant.

    Args:
        by: what is put there.
        value: the constant.
    """

    by: Literal["mean", "median", "constant"] = "mean"
    value: float = 0.0

    name: ClassVar[str] = "impute"

    def __post_init__(self) -> None:
        if self.by not in ("mean", "median", "constant"):
            raise ConfigError(f"by = {self.by!r}", hint="it is mean, median or constant")
        if not math.isfinite(self.value):
            raise ConfigError(f"value = {self.value} is not finite")

    def fit(self, side: Side) -> Record:
        if self.by == "constant":
            return Record(columns=named(side.columns), value=_tensor(np.full(side.x.shape[1], self.value)))
        empty = np.isnan(side.x).all(0)
        if empty.any():
            raise DataError(
                f"{int(empty.sum())} columns have no value that others could be put in the place of",
                hint=f"leave them out: {', '.join(np.array(side.columns)[empty])}",
            )
        value = np.nanmean(side.x, 0) if self.by == "mean" else np.nanmedian(side.x, 0)
        return Record(columns=named(side.columns), value=_tensor(value))

    def apply(self, side: Side, learned: Record) -> Side:
        columns_of(side, learned)
        return replace(side, x=np.where(np.isnan(side.x), learned.value.numpy(), side.x))


@dataclass(frozen=True)
class OneHot(Transform):
    """A column of 0 and 1 for each value of some columns; what was not there when it was learned is 0 in all of them.

    A missing value has a column of its own where there was one.

    Args:
        columns: which; the others stay as they are, before the new ones.
        most: values of a column beyond which it is refused.
    """

    columns: tuple[str, ...] = ()
    most: int = 64

    name: ClassVar[str] = "onehot"

    def fit(self, side: Side) -> Record:
        wanting = [name for name in self.columns if name not in side.columns]
        if wanting:
            raise ConfigError(f"{len(wanting)} columns are not there", hint=f"no {', '.join(wanting)}")
        levels = {}
        for name in self.columns:
            at = side.columns.index(name)
            found = np.unique(side.x[:, at])  # a missing one last
            if len(found) > self.most:
                raise DataError(
                    f"a column has {len(found)} values, and one-hot columns are at most {self.most}",
                    hint=f"{name}: bin it first, or raise most",
                )
            levels[str(at)] = _tensor(found)
        return Record(columns=named(side.columns), levels=Tensors(levels))

    def apply(self, side: Side, learned: Record) -> Side:
        columns_of(side, learned)
        at = [int(name) for name in learned.levels]
        stay = [column for column in range(side.x.shape[1]) if column not in at]
        parts, names = [side.x[:, stay]], [side.columns[column] for column in stay]
        for column in at:
            values, x = learned.levels[str(column)].numpy(), side.x[:, column, None]
            parts.append(((x == values) | (np.isnan(x) & np.isnan(values))).astype(np.float64))
            names += [f"{side.columns[column]}={_plain(value)}" for value in values]
        return replace(side, x=np.concatenate(parts, 1), columns=tuple(names))


def _plain(value: float) -> str:
    return repr(float(value)).removesuffix(".0")


def _tensor(values: FloatArray) -> Tensor:
    return torch.from_numpy(np.array(values, np.float64))
