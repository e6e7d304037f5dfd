"""Divisions along a property of the rows: who wrote them, where, when, how large a value is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from atoll.data.division import Division, Partitioner, cut, require, require_clients
from atoll.data.samples import IntArray
from atoll.data.table import gaps, is_number
from atoll.errors import DataError, suggest
from atoll.seeds import rng

from .quantity import even_sizes

if TYPE_CHECKING:
    from atoll.data.dataset import Dataset

__all__ = ["By", "ByTime", "Continuous"]


def _column(data: Dataset, name: str, what: str) -> NDArray[Any]:
    if name not in data.columns:
        known = (
            suggest(name, data.columns)
            if data.columns
            else 'of a table, client="COLUMN" names it; from_arrays takes columns'
        )
        raise DataError(f"{what}: {data.name!r} has no column {name!r}", hint=known)
    return data.columns[name]


def _text(values: NDArray[Any]) -> NDArray[Any]:
    """Values as text; missing ones (None, NaN, empty) become ``unknown``. A text is a name, whatever it says."""
    if values.dtype.kind in "iub":
        return values.astype(str)
    absent = gaps(values)
    return np.array(
        ["unknown" if gap else str(value) for value, gap in zip(values.tolist(), absent, strict=True)]
    )


def _number(name: str) -> tuple[int, float, str]:
    """Order names as numbers where they are numbers."""
    return (0, float(name), name) if is_number(name) else (1, 0.0, name)


@dataclass(frozen=True)
class By(Partitioner):
    """One client per value of a column; without a column, the dataset's natural one.

    Clients are in the order of their names, numbers by value; rows without a value belong to the client
    ``unknown``. `group` joins so many consecutive values into one client. Clients with fewer than `min_size`
    rows are left out, and of more than `max_clients` a random choice stays. Clients differ by nature here, so
    each keeps its own test rows even where there is an official test split; where that says whose its rows are, each
    has those.
    """

    column: str | None = None
    min_size: int = 1
    max_clients: int | None = None
    group: int = 1
    code: ClassVar[str] = "by"
    in_client_test: ClassVar[bool] = True

    def __str__(self) -> str:
        text = super().__str__()
        return text if self.column is not None else f"natural{text.removeprefix(self.code)}"

    def divide(self, data: Dataset, seed: int) -> Division:
        if self.column is None and data.natural is None:
            columns = ", ".join(data.columns) or "none"
            raise DataError(
                f"{data.name!r} has no natural clients (columns: {columns})",
                hint='divide it with, for example, "iid", "dirichlet:0.3", or "by:COLUMN"',
            )
        name = self.column if self.column is not None else str(data.natural)
        require(
            min(self.group, self.min_size) >= 1,
            f"{self}: group and min_size must be at least 1",
            "1 is usual",
        )
        values, owner = np.unique(_text(_column(data, name, str(self))), return_inverse=True)
        order = sorted(range(len(values)), key=lambda index: _number(str(values[index])))
        rows = cut(np.argsort(owner, kind="stable"), np.bincount(owner, minlength=len(values)))
        clients: list[tuple[str, IntArray]] = []
        for start in range(0, len(order), self.group):
            members = order[start : start + self.group]
            joined = np.sort(np.concatenate([rows[index] for index in members]))
            if len(joined) >= self.min_size:
                clients.append(("+".join(str(values[index]) for index in members), joined))
        require(bool(clients), f"{self}: no client has {self.min_size} rows", "lower min_size")
        if self.max_clients is not None and len(clients) > self.max_clients:
            require(
                self.max_clients >= 1, f"{self}: max_clients must be at least 1", "leave it out to keep all"
            )
            kept = np.sort(rng(seed, "data.by").permutation(len(clients))[: self.max_clients])
            clients = [clients[index] for index in kept]
        return Division(
            [own for _, own in clients],
            [client for client, _ in clients],
            test=self._tests(data, name, clients),
        )

    def _tests(
        self, data: Dataset, column: str, clients: list[tuple[str, IntArray]]
    ) -> list[IntArray] | None:
        """The rows of the test split that are the clients' own, where it says whose they are."""
        if column not in data.test_columns:
            return None
        values, own = _text(data.columns[column]), _text(data.test_columns[column])
        return [np.flatnonzero(np.isin(own, np.unique(values[rows]))) for _, rows in clients]


@dataclass(frozen=True)
class ByTime(Partitioner):
    """Consecutive periods: rows in the order of a column, cut into clients of (nearly) equal size."""

    column: str
    clients: int
    code: ClassVar[str] = "by-time"
    in_client_test: ClassVar[bool] = True

    def divide(self, data: Dataset, seed: int) -> Division:
        values = _column(data, self.column, str(self))
        require_clients(self.clients, len(values), 1, self.code)
        order = np.argsort(values, kind="stable")
        return Division(cut(order, even_sizes(len(values), self.clients)))


@dataclass(frozen=True)
class Continuous(Partitioner):
    """Skew in a real-valued column: clients hold neighbouring values, the more strictly the nearer to 1.

    Rows are sorted by strictness * rank + (1 - strictness) * noise, both uniform in [0, 1], and cut into
    clients of (nearly) equal size: 1 is an exact sort, 0 is IID. ``"target"`` names the targets of a
    regression.
    """

    column: str
    clients: int
    strictness: float = 1.0
    code: ClassVar[str] = "continuous"
    in_client_test: ClassVar[bool] = True

    def divide(self, data: Dataset, seed: int) -> Division:
        if self.column == "target" and data.classes is None and data.train.targets.dim() == 1:
            values: NDArray[Any] = data.train.targets.cpu().numpy()
        else:
            values = _column(data, self.column, str(self))
        require(
            values.dtype.kind in "biuf",
            f"{self}: the column holds {values.dtype} values, not numbers",
            "use by:COLUMN for a column of names",
        )
        missing = int(np.isnan(values.astype(np.float64)).sum())
        require(not missing, f"{self}: {missing} rows have no value", "fill them or drop the rows")
        require(
            0 <= self.strictness <= 1,
            f"{self}: strictness must lie in [0, 1]",
            "1 is an exact sort, 0 is IID",
        )
        total = len(values)
        require_clients(self.clients, total, 1, self.code)
        rank = np.empty(total)
        rank[np.argsort(values, kind="stable")] = np.arange(total) / max(1, total - 1)
        noise = rng(seed, "data.continuous").random(total)
        order = np.argsort(self.strictness * rank + (1 - self.strictness) * noise, kind="stable")
        return Division([np.sort(part) for part in cut(order, even_sizes(total, self.clients))])
