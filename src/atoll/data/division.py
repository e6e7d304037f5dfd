"""What a partitioner gives back, and the arithmetic that all of them share."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from atoll.errors import DataError
from atoll.seeds import rng

from .samples import IntArray, Samples, labels_of

if TYPE_CHECKING:
    from .dataset import Dataset

__all__ = [
    "Division",
    "Partitioner",
    "Place",
    "cut",
    "deal_test",
    "integer_shares",
    "require",
    "require_clients",
    "required_labels",
    "split_rows",
]

Generator = np.random.Generator
FloatArray = NDArray[np.float64]


@dataclass
class Division:
    """Which rows each client holds; `test` and `validation` only where the partitioner fixes them."""

    train: list[IntArray]
    names: Sequence[str] | None = None
    validation: list[IntArray] | None = None
    test: list[IntArray] | None = None


class Place(NamedTuple):
    """Whose samples a transform looks at."""

    client: int
    clients: int
    classes: int | None
    split: str
    seed: int


class Partitioner(ABC):
    """A rule that divides the rows of a dataset among clients.

    Subclasses are frozen dataclasses. `divide` is a pure function of the dataset and the seed; the lists it
    returns are disjoint and none is empty. They cover all rows unless the class says otherwise.
    """

    code: ClassVar[str]
    in_client_test: ClassVar[bool] = False
    """Clients differ in more than labels and counts: the official test set says nothing about one of them."""
    transforms: ClassVar[bool] = False
    """`transform` changes samples, so every client gets its own copy of its rows."""

    @abstractmethod
    def divide(self, data: Dataset, seed: int) -> Division:
        """Rows of `data.train` per client. Raises `DataError` at once where the request cannot be met."""

    def transform(self, samples: Samples, place: Place) -> Samples:
        """What a client sees in place of `samples`, its own rows of one split."""
        return samples

    def __str__(self) -> str:
        """The text that `parse_partition` reads, without the number of clients."""
        fields = [field for field in dataclasses.fields(self) if field.name != "clients"]  # type: ignore[arg-type]
        values: list[str] = []
        for position, field in enumerate(fields):
            value = getattr(self, field.name)
            if field.default is dataclasses.MISSING or (position == 0 and value is not None):
                values.append(_short(value))
            elif value != field.default:
                values.append(f"{field.name}={_short(value)}")
        return f"{self.code}:{','.join(values)}" if values else self.code


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def require(condition: bool, message: str, hint: str) -> None:
    """Raise `DataError` unless the condition holds."""
    if not condition:
        raise DataError(message, hint=hint)


def require_clients(clients: int, samples: int, minimum: int, what: str) -> None:
    """Every one of `clients` clients can have `minimum` of `samples` samples."""
    require(clients >= 1, f"{what}: clients must be at least 1, not {clients}", "choose a positive number")
    require(minimum >= 1, f"{what}: min_size must be at least 1, not {minimum}", "no client may be empty")
    require(
        clients * minimum <= samples,
        f"{what}: {clients} clients with at least {minimum} sample{'s' * (minimum > 1)} each "
        f"need {clients * minimum} samples; there are {samples}",
        "take fewer clients or a smaller minimum",
    )


def required_labels(data: Dataset, what: str) -> tuple[IntArray, int]:
    """Labels and number of classes, for partitioners that divide by label."""
    labels = labels_of(data.train, data.classes)
    if labels is None or data.classes is None:
        kind = "a regression" if data.classes is None else "a sequence of targets per sample"
        raise DataError(
            f"{what} divides by label, but {data.name!r} has {kind}",
            hint="use iid, a quantity partitioner, or a column with by:COLUMN",
        )
    return labels, data.classes


def integer_shares(weights: FloatArray, total: int, generator: Generator | None = None) -> IntArray:
    """Whole numbers in proportion to `weights` that sum to `total` (largest remainder).

    Equal remainders are served in a random order where a generator is given, else from the front.
    """
    whole = float(weights.sum())
    if total == 0 or whole <= 0:
        return np.zeros(len(weights), dtype=np.int64)
    exact = weights / whole * total
    counts = np.floor(exact).astype(np.int64)
    missing = total - int(counts.sum())
    if missing:
        tie = generator.random(len(weights)) if generator is not None else np.arange(len(weights))
        rest = np.where(weights > 0, np.round(exact - counts, 9), -1.0)
        counts[np.lexsort((tie, -rest))[:missing]] += 1
    return counts


def cut(order: IntArray, counts: IntArray) -> list[IntArray]:
    """Consecutive pieces of `order` with these lengths."""
    return np.split(order, np.cumsum(counts))[: len(counts)]


def split_rows(
    rows: IntArray, labels: IntArray | None, amount: float | int, generator: Generator
) -> tuple[IntArray, IntArray]:
    """Divide a client's rows into (kept, taken), by label where there is one; at least one row is kept.

    `amount` below 1 is a share (rounded to whole rows), a whole number is a count. `labels` is indexed by
    row.
    """
    n = len(rows)
    wanted = round(amount * n) if isinstance(amount, float) else amount
    wanted = min(wanted, n - 1)
    if wanted <= 0:
        return rows, rows[:0]
    taken = np.zeros(n, dtype=bool)
    if labels is None:
        taken[generator.permutation(n)[:wanted]] = True
    else:
        own = labels[rows]
        values, counts = np.unique(own, return_counts=True)
        quota = integer_shares(counts.astype(np.float64), wanted, generator)
        for value, share in zip(values, quota, strict=True):
            taken[generator.permutation(np.flatnonzero(own == value))[:share]] = True
    return rows[~taken], rows[taken]


def deal_test(data: Dataset, train: list[IntArray], seed: int) -> list[IntArray]:
    """Divide the dataset's test split so that every client's test data look like its training data.

    The test samples of a class are shuffled and dealt in proportion to how many training samples of that
    class each client has; without classes, in proportion to the size. Samples of a class that no client holds
    stay out.
    """
    assert data.test is not None
    generator = rng(seed, "data.test")
    clients = len(train)
    sizes = np.array([len(rows) for rows in train], dtype=np.float64)
    labels, test_labels = labels_of(data.train, data.classes), labels_of(data.test, data.classes)
    if labels is None or test_labels is None or data.classes is None:
        groups = [(np.arange(data.test.count), sizes)]
    else:
        owner = np.repeat(np.arange(clients), sizes.astype(np.int64))
        held = np.bincount(
            owner * data.classes + labels[np.concatenate(train)], minlength=clients * data.classes
        ).reshape(clients, data.classes)
        groups = [
            (np.flatnonzero(test_labels == label), held[:, label].astype(np.float64))
            for label in range(data.classes)
        ]
    parts: list[list[IntArray]] = [[] for _ in range(clients)]
    for rows, weights in groups:
        if not weights.any():
            continue
        for client, piece in enumerate(
            cut(generator.permutation(rows), integer_shares(weights, len(rows), generator))
        ):
            if len(piece):
                parts[client].append(piece)
    nothing = np.zeros(0, dtype=np.int64)
    return [np.sort(np.concatenate(part)) if part else nothing for part in parts]
