"""Columns in bins: quantiles or edges that are given, and a bin of its own for what is missing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from atoll.errors import ConfigError, DataError
from atoll.tensors import Record, Tensors
from atoll.vertical.features.transform import Transform, columns_of, named
from atoll.vertical.side import FloatArray, Side

__all__ = ["Binned", "ManualBins", "QuantileBins", "binned"]

Codes = NDArray[np.int32]


@dataclass(frozen=True)
class Binned:
    """Rows in bins.

    Attributes:
        codes: int32 [n, d], the bin of each value.
        sizes: how many bins each column has, d numbers; the last one is that of missing values.
    """

    codes: Codes
    sizes: tuple[int, ...]

    def flat(self) -> tuple[Codes, NDArray[np.int64]]:
        """Codes that are counted on from column to column, [n, d], and where each column begins, [d + 1]."""
        begin = np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64)
        return self.codes + begin[:-1].astype(np.int32), begin


def binned(side: Side, learned: Record) -> Binned:
    """The bins of a side's rows.

    With edges e_1 < ... < e_m bin 0 has the values up to e_1, bin i those in (e_i, e_{i+1}], bin m those above e_m, and
    bin m + 1 the missing ones.

    Args:
        learned: of `QuantileBins` or `ManualBins`.
    """
    columns_of(side, learned)
    codes = np.empty(side.x.shape, np.int32)
    sizes = []
    for at in range(side.x.shape[1]):
        edges = learned.edges[str(at)].numpy()
        codes[:, at] = np.searchsorted(edges, side.x[:, at], side="left")
        codes[np.isnan(side.x[:, at]), at] = len(edges) + 1
        sizes.append(len(edges) + 2)
    return Binned(codes, tuple(sizes))


@dataclass(frozen=True)
class _Bins(Transform):
    """`apply` puts the number of its bin in the place of each value."""

    def apply(self, side: Side, learned: Record) -> Side:
        return replace(side, x=binned(side, learned).codes.astype(np.float64))


@dataclass(frozen=True)
class QuantileBins(_Bins):
    """Bins with about as many rows each.

    Edges are values that are there (quantiles of numpy's method "inverted_cdf"), each once: a column with few values
    has fewer bins.

    Args:
        count: bins of a column at most, without that of missing values.
        least: rows of a bin at least; smaller ones are joined with their neighbours, from the lowest up. That of
            missing values stays as it is.
    """

    count: int = 10
    least: int = 1

    name: ClassVar[str] = "quantile"

    def __post_init__(self) -> None:
        if self.count < 2:
            raise ConfigError(f"count = {self.count}: there must be 2 bins at least")

    def fit(self, side: Side) -> Record:
        edges = {}
        for at in range(side.x.shape[1]):
            values = side.x[~np.isnan(side.x[:, at]), at]
            edges[str(at)] = torch.from_numpy(_joined(_quantiles(values, self.count), values, self.least))
        return Record(columns=named(side.columns), edges=Tensors(edges))


def _quantiles(values: FloatArray, count: int) -> FloatArray:
    """Edges between bins: at most count - 1, none so high that its upper bin would be empty."""
    if not len(values):
        return np.zeros(0)
    found = np.unique(np.quantile(values, np.arange(1, count) / count, method="inverted_cdf"))
    edges: FloatArray = found[found < values.max()]
    return edges


def _joined(edges: FloatArray, values: FloatArray, least: int) -> FloatArray:
    """Those edges that leave at least so many rows in each bin."""
    counts = np.bincount(np.searchsorted(edges, values, side="left"), minlength=len(edges) + 1).tolist()
    kept, rows = [], 0
    for edge, count in zip(edges.tolist(), counts, strict=False):
        rows += count
        if rows >= least:
            kept.append(edge)
            rows = 0
    if kept and rows + counts[-1] < least:
        kept.pop()
    return np.array(kept, np.float64)


@dataclass(frozen=True)
class ManualBins(_Bins):
    """Bins with edges that are given.

    Args:
        edges: by column, growing; a column without any is one bin.
    """

    edges: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    name: ClassVar[str] = "manual"

    def __post_init__(self) -> None:
        for name, edges in self.edges.items():
            sound = all(map(math.isfinite, edges)) and list(edges) == sorted(set(edges))
            if not sound:
                raise ConfigError("edges of bins must be finite and grow", hint=f"column {name}: {edges}")

    def fit(self, side: Side) -> Record:
        wanting = [name for name in self.edges if name not in side.columns]
        if wanting:
            raise DataError(f"{len(wanting)} columns are not there", hint=f"no {', '.join(wanting)}")
        edges = {
            str(at): torch.tensor(self.edges.get(name, ()), dtype=torch.float64)
            for at, name in enumerate(side.columns)
        }
        return Record(columns=named(side.columns), edges=Tensors(edges))
