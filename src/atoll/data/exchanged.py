"""Divided data some of whose clients train on other samples."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np

from .federated import FederatedData, Resident
from .names import Rows
from .samples import IntArray, Samples, concatenate

__all__ = ["Change", "exchanged"]

Change = Callable[[int, Samples], Samples]
"""(client, its training samples) -> as many others of the same form."""


def exchanged(data: FederatedData, clients: Collection[int], change: Change) -> FederatedData:
    """The same data, in which these clients' training samples are what `change` makes of them.

    What is not made on demand is changed now, beside the pool: other splits may lie in it.
    """
    if not isinstance(data, Resident):
        return _Exchanged(data, frozenset(clients), change)
    pool, rows, size = data._pools["train"], data._rows["train"], 0
    flat, added = rows.flat.copy(), []
    for client in sorted(clients):
        own = change(client, pool.take(rows[client]))
        added.append(own)
        end = int(rows.ends[client])
        flat[end - own.count : end] = pool.count + size + np.arange(own.count)
        size += own.count
    made = Resident(
        pools={**data._pools, "train": concatenate([pool, *added])},
        rows={**data._rows, "train": Rows(flat, rows.ends)},
        names=data.names, classes=data.classes, dataset=data.dataset, partition=data.partition,
        test_set=data._official,
    )  # fmt: skip
    made.public, made.root, made.scale, made.augmentation, made.weights, made.mixture = (
        data.public, data.root, data.scale, data.augmentation, data.weights, data.mixture,
    )  # fmt: skip
    return made


class _Exchanged(FederatedData):
    """Data made on demand, with other training samples of some clients."""

    def __init__(self, data: FederatedData, clients: frozenset[int], change: Change) -> None:
        self.data, self.clients, self.change = data, clients, change
        self.names, self.classes, self.dataset, self.partition = (
            data.names, data.classes, data.dataset, data.partition,
        )  # fmt: skip
        self.public, self.root, self.scale, self.augmentation, self.weights = (
            data.public, data.root, data.scale, data.augmentation, data.weights,
        )  # fmt: skip

    @property
    def test_set(self) -> Samples | None:
        return self.data.test_set

    def size(self, client: int) -> int:
        return self.data.size(client)

    def samples(self, client: int, split: str = "train") -> Samples | None:
        found = self.data.samples(client, split)
        if found is None or split != "train" or client not in self.clients:
            return found
        return self.change(client, found)

    def example(self) -> Samples:
        return self.data.example()

    def choose(self, clients: Sequence[int] | IntArray) -> FederatedData:
        positions = [int(client) for client in clients]
        there = {at for at, client in enumerate(positions) if client in self.clients}
        return exchanged(
            self.data.choose(clients), there, lambda at, samples: self.change(positions[at], samples)
        )
