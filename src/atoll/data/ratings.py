"""Ratings of items by users, and users as clients who hold a list each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from atoll.errors import ConfigError, DataError, suggest
from atoll.seeds import rng

from .dataset import check_splits
from .delimited import read_delimited
from .federated import FederatedData, Resident, pack
from .samples import IntArray, Samples
from .table import Table

__all__ = ["KINDS", "Ratings", "from_ratings"]

KINDS = ("ratings", "likes")
"""What may stand before the path: ``ratings:PATH``, explicit, or ``likes:PATH``, implicit."""

_MOST = 1 << 30
"""Numbers in a table of users by items: four gigabytes."""


@dataclass(frozen=True)
class Ratings:
    """Who rated what, and how.

    Attributes:
        name: what reports call them.
        users, items: their names; others go by position in these.
        user, item, value: of each rating [n]; values are above 0, and 1 where there is only that a user had an item.
        few: how many users were left out, whose ratings were too few.
    """

    name: str
    users: list[str]
    items: list[str]
    user: IntArray
    item: IntArray
    value: NDArray[np.float32]
    few: int = 0

    def __repr__(self) -> str:
        return f"<Ratings {self.name}: {len(self.user):,} of {len(self.items):,} items by {len(self.users):,} users>"

    def lists(
        self,
        *,
        liked: float | None = None,
        test: float | None = 0.25,
        validation: float | int = 0,
        seed: int = 0,
    ) -> FederatedData:
        """Users as clients with one sample each: their list of all items, for losses and figures of `atoll.ranking`.

        Inputs [1, items] are what a user has rated for training, 0 elsewhere. Targets [1, items] are the ratings of
        the split, and 0 at candidates without one; in validation and test, -1 at what the user has rated for training
        (and, in the test, for validation): nobody is recommended what they know. What is held out is no different from
        what a user never had while the others train.

        Args:
            liked: explicit ratings become implicit: 1 from here on, 0 below, where the user had the item and did not
                like it. None keeps them as they are.
            test, validation: the share of each user's ratings that is held out, one at least; None or 0, none. A whole
                number is so many, but never a user's last one.
            seed: names the random choices.

        Raises DataError where nobody likes anything, and for more users and items than memory has room for.
        """
        check_splits(test, validation)
        if len(self.users) * len(self.items) > _MOST:
            raise DataError(
                f"{self.name}: {len(self.users):,} users by {len(self.items):,} items are too many for dense lists",
                hint="leave out rare users with least=20, or items, before the file is read",
            )
        value = self.value if liked is None else (self.value >= liked).astype(np.float32)
        if not value.any():
            raise DataError(
                f"{self.name}: no rating reaches liked = {liked:g}",
                hint=f"the highest is {float(self.value.max()):g}",
            )
        order = np.argsort(self.user, kind="stable")
        ends = np.searchsorted(self.user[order], np.arange(1, len(self.users)))
        splits: dict[str, list[Samples | None]] = {"train": [], "validation": [], "test": []}
        for client, rows in enumerate(np.split(order, ends)):
            known = rows
            held: dict[str, IntArray] = {}
            for split, amount in (("test", test or 0), ("validation", validation)):
                many = amount if isinstance(amount, int) else max(1, round(amount * len(rows)))
                many = min(many, len(known) - 1)
                mixed = rng(seed, f"data.{split}", client=client).permutation(len(known))
                held[split], known = known[mixed[:many]], known[mixed[many:]]
            seen = self._list(known, value)
            splits["train"].append(_sample(seen, seen))
            for split, before in (("validation", known), ("test", np.append(known, held["validation"]))):
                wanted = self._list(held[split], value)
                wanted[self.item[before]] = -1
                splits[split].append(_sample(seen, wanted) if len(held[split]) else None)
        packed = {split: found for split, parts in splits.items() if (found := pack(parts)) is not None}
        return Resident(
            pools={split: samples for split, (samples, _) in packed.items()},
            rows={split: rows for split, (_, rows) in packed.items()},
            names=self.users,
            classes=None,
            dataset=self.name,
            partition="by user" + (f", without {self.few:,} of too few ratings" if self.few else ""),
        )

    def _list(self, rows: IntArray, value: NDArray[np.float32]) -> NDArray[np.float32]:
        found = np.zeros(len(self.items), np.float32)
        found[self.item[rows]] = value[rows]
        return found

    def position(self, user: str) -> int:
        """Where a user stands.  Raises ConfigError for one who has rated nothing, or too little."""
        if user not in self.users:
            known = suggest(user, self.users[:1000])
            raise ConfigError(
                f"there is no user {user!r} among the {len(self.users):,} of {self.name}",
                hint=f"{known}; somebody new needs ratings of their own in the file, from which a taste is learned",
            )
        return self.users.index(user)


def from_ratings(
    source: str | Path | Mapping[str, Any] | Any,
    *,
    user: str = "user",
    item: str = "item",
    rating: str | None = "rating",
    least: int = 5,
    name: str | None = None,
) -> Ratings:
    """Ratings from a csv or tsv file, a pandas or polars frame, or a mapping of columns.

    Args:
        source: the table, a row a rating.
        user, item: the columns with their names, which may be numbers.
        rating: the column with the rating, above 0; None: a row says only that the user had the item.
        least: users with fewer ratings are left out, and counted.
        name: what reports call them; by default the file's.

    Raises DataError that names the row for a gap, a rating that is no number above 0, and an item that a user rated
    twice and differently; and where fewer than two users are left.
    """
    if isinstance(source, (str, Path)):
        path = Path(source).expanduser()
        if not path.is_file():
            raise DataError(f"there is no file {path}", hint="paths start where the program is started")
        name, table = name or path.name, read_delimited(path, (user, item))
    else:
        name = name or "ratings"
        table = Table.of(source, name)
    for column in (user, item, *([] if rating is None else [rating])):
        if column not in table:
            raise DataError(
                f"{name}: there is no column {column!r}, but {', '.join(map(repr, table.names))}",
                hint="name the columns: user=, item=, rating=None where there is none; in settings client, item"
                " and label",
            )
    gaps = table.gaps(user) | table.gaps(item)
    if gaps.any():
        raise DataError(
            f"{name}: data row {int(np.argmax(gaps))} has no user or no item", hint="leave such rows out"
        )
    who, users = _numbered(table, user)
    what, items = _numbered(table, item)
    values = np.ones(len(who), np.float32) if rating is None else _values(table, rating, name)
    who, what, values = _once(who, what, values, users, items, name)
    enough = np.bincount(who, minlength=len(users)) >= max(least, 2)
    if enough.sum() < 2:
        raise DataError(
            f"{name}: {int(enough.sum())} users with {max(least, 2)} ratings or more",
            hint="two are needed; least=3 keeps users with fewer",
        )
    kept = enough[who]
    at = np.cumsum(enough) - 1
    return Ratings(
        name,
        [each for each, stays in zip(users, enough, strict=True) if stays],
        items,
        at[who[kept]],
        what[kept],
        values[kept],
        int((~enough).sum()),
    )


def _numbered(table: Table, column: str) -> tuple[IntArray, list[str]]:
    """Each row's number, and the names in the order in which they occur first."""
    names = [str(each).strip() for each in table.identifiers(column).tolist()]
    numbers: dict[str, int] = {}
    found = np.array([numbers.setdefault(each, len(numbers)) for each in names], np.int64)
    return found, list(numbers)


def _values(table: Table, rating: str, name: str) -> NDArray[np.float32]:
    text = table.is_text(rating)
    found = np.array(
        [_number(each) for each in table.values(rating).tolist()] if text else table.values(rating), float
    )
    bad = ~(np.isfinite(found) & (found > 0))
    if bad.any():
        row = int(np.argmax(bad))
        given = table.values(rating).tolist()[row]
        raise DataError(
            f"{name}: data row {row} has the rating {given!r}",
            hint="ratings are numbers above 0; where they may be lower, add a constant to all",
        )
    return found.astype(np.float32)


def _number(text: Any) -> float:
    try:
        return float(text)
    except (TypeError, ValueError):
        return float("nan")


def _once(
    who: IntArray, what: IntArray, values: NDArray[np.float32], users: list[str], items: list[str], name: str
) -> tuple[IntArray, IntArray, NDArray[np.float32]]:
    """The ratings without those that say the same again.  Raises DataError where they do not say the same."""
    pairs = who * len(items) + what
    _, first, place = np.unique(pairs, return_index=True, return_inverse=True)
    other = values != values[first[place]]
    if other.any():
        row = int(np.argmax(other))
        raise DataError(
            f"{name}: {users[who[row]]} rated {items[what[row]]} twice, and differently"
            f" (data rows {int(first[place[row]])} and {row})",
            hint="keep one of them, such as the last",
        )
    kept = np.sort(first)
    return who[kept], what[kept], values[kept]


def _sample(inputs: NDArray[np.float32], targets: NDArray[np.float32]) -> Samples:
    return Samples(torch.from_numpy(inputs).unsqueeze(0), torch.from_numpy(targets).unsqueeze(0))
