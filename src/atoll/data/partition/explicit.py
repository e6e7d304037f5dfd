"""Divisions that a person wrote down: a matrix of shares, or the rows themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from atoll.data.division import Division, Partitioner, cut, integer_shares, require, required_labels
from atoll.data.samples import IntArray
from atoll.errors import DataError
from atoll.seeds import rng

if TYPE_CHECKING:
    from atoll.data.dataset import Dataset

__all__ = ["Indices", "Matrix"]


@dataclass(frozen=True, eq=False)
class Matrix(Partitioner):
    """`matrix[k][c]` is the share of class c that client k gets, a number from 0 to 1.

    No column may sum to more than 1; where one sums to less, the rest of that class stays unused. Counts are
    rounded by largest remainder. Accepts nested lists or an array.
    """

    matrix: Any
    code: ClassVar[str] = "matrix"

    def __str__(self) -> str:
        return self.code

    def divide(self, data: Dataset, seed: int) -> Division:
        labels, classes = required_labels(data, "matrix")
        shares = np.asarray(self.matrix, dtype=np.float64)
        require(
            shares.ndim == 2 and shares.shape[0] >= 1 and shares.shape[1] == classes,
            f"matrix: shape {shares.shape} for {classes} classes",
            "one row a client, one column a class",
        )
        sums = shares.sum(0)
        require(
            bool((shares >= 0).all()) and bool((sums <= 1 + 1e-9).all()),
            f"matrix: shares are at least 0 and columns sum to at most 1 (largest {sums.max():g})",
            "divide each column by its sum",
        )
        generator = rng(seed, "data.matrix")
        parts: list[list[IntArray]] = [[] for _ in shares]
        for label in range(classes):
            rows = generator.permutation(np.flatnonzero(labels == label))
            used = min(len(rows), round(float(sums[label]) * len(rows)))
            for client, piece in enumerate(cut(rows, integer_shares(shares[:, label], used))):
                parts[client].append(piece)
        joined = [np.sort(np.concatenate(part)) for part in parts]
        empty = [client for client, rows in enumerate(joined) if not len(rows)]
        require(not empty, f"matrix: clients without a sample: {empty[:5]}", "give every row a larger share")
        return Division(joined)


@dataclass(frozen=True, eq=False)
class Indices(Partitioner):
    """The rows of each client, written down. A mapping gives the clients' names.

    `lists` (and `validation`) hold rows of the training split; `test` holds rows of the official test split.
    Lists must be disjoint and none empty; rows that no list holds stay unused.
    """

    lists: Any
    validation: Any = None
    test: Any = None
    code: ClassVar[str] = "indices"

    def __str__(self) -> str:
        return self.code

    def divide(self, data: Dataset, seed: int) -> Division:
        names = None
        lists = self.lists
        if isinstance(lists, dict):
            names, lists = [str(name) for name in lists], list(lists.values())
        train = [_rows(rows, data.train.count, f"client {client}") for client, rows in enumerate(lists)]
        require(bool(train), "indices: no lists", "one list of rows per client")
        for client, rows in enumerate(train):
            require(bool(len(rows)), f"indices: client {client} has no rows", "leave it out")
        validation = self._split(self.validation, data.train.count, len(train), "validation")
        _disjoint(train + (validation or []), "lists")
        available = 0 if data.test is None else data.test.count
        test = self._split(self.test, available, len(train), "test")
        _disjoint(test or [], "test")
        return Division(train, names, validation, test)

    def _split(self, value: Any, total: int, clients: int, split: str) -> list[IntArray] | None:
        if value is None:
            return None
        lists = list(value.values()) if isinstance(value, dict) else list(value)
        require(
            len(lists) == clients,
            f"indices: {len(lists)} {split} lists for {clients} clients",
            "one per client",
        )
        return [_rows(rows, total, f"{split} of client {client}") for client, rows in enumerate(lists)]


def _rows(rows: Sequence[int], total: int, who: str) -> IntArray:
    array = np.asarray(rows)
    if array.size == 0:
        return np.zeros(0, dtype=np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise DataError(
            f"indices: {who}: rows must be one list of whole numbers", hint="np.flatnonzero(mask)"
        )
    require(
        int(array.min()) >= 0 and int(array.max()) < total,
        f"indices: {who}: rows {int(array.min())}..{int(array.max())} of {total}",
        "rows count from 0",
    )
    return array.astype(np.int64)


def _disjoint(lists: list[IntArray], what: str) -> None:
    if lists:
        values, counts = np.unique(np.concatenate(lists), return_counts=True)
        repeated = values[counts > 1]
        require(
            not len(repeated),
            f"indices: {what}: {len(repeated)} rows occur twice, such as {repeated[:3].tolist()}",
            "a row belongs to one client and one split",
        )
