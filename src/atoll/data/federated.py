"""`FederatedData`: what engines read. Clients by position, resident in memory or made on demand."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from atoll import seeds
from atoll.errors import ConfigError, DataError, suggest
from atoll.parts import Inputs, shapes
from atoll.seeds import rng

from .augment import Augmentation, augmentation
from .mixture import Mixture
from .names import Rows
from .report import PartitionReport, measure
from .samples import IntArray, Samples, concatenate
from .scaling import Constants
from .stored import SPLITS, Stored, read, write
from .weights import FloatArray, Weights, scaled, weights_of

__all__ = ["SPLITS", "FederatedData", "Resident", "pack"]


class FederatedData(ABC):
    """Data that is divided among clients. `len` is the population; clients go by position, 0 to len - 1.

    Attributes:
        names: the clients' ids, as many as there are clients; lazy populations make them on demand.
        classes: how many classes there are; None for a regression.
        dataset, partition: what reports call the data and the way it was divided.
        public: samples that everybody knows, the server too, or None; see `publish`.
        root: samples, with their targets, that the server has, or None; see `entrust`.
        augmentation: what is done to every training batch anew, or None; see `augment`.
        scale: the constants that the inputs were scaled by when the data was divided (``scale="federated"``), as
            `from_frame` takes them; None otherwise.
        weights: what clients count for in averages [n], their mean 1, where it was given (`weigh`); None otherwise.
        mixture: the shares of their batches that clients' sources have, where it was given (`Dataset.partition`).
    """

    public: Samples | None = None
    root: Samples | None = None
    augmentation: Augmentation | None = None
    scale: Constants | None = None
    weights: FloatArray | None = None
    mixture: Mixture | None = None
    names: Sequence[str]
    classes: int | None
    dataset: str
    partition: str
    here: ClassVar[bool] = True
    """Whether the samples are on this machine."""
    version: int = 0
    """Grows whenever there is news of who has how many samples."""

    def __len__(self) -> int:
        return len(self.names)

    def position(self, client: int | str) -> int:
        """Where a client stands, by its position or its name.  Raises ConfigError where there is none."""
        names = self.names
        at = client if isinstance(client, int) else list(names).index(client) if client in names else -1
        if not 0 <= at < len(self):
            hint = suggest(str(client), [str(name) for name in names[:1000]])
            raise ConfigError(f"there is no client {client!r} among the {len(self):,}", hint=hint)
        return at

    @property
    @abstractmethod
    def test_set(self) -> Samples | None:
        """The global test set: the official one, else all clients' test data together, else None."""

    @abstractmethod
    def size(self, client: int) -> int:
        """How many training samples the client at this position has."""

    @abstractmethod
    def samples(self, client: int, split: str = "train") -> Samples | None:
        """The client's samples in a split (train, validation or test); None where there are none."""

    def held(self, client: int, split: str = "train") -> int | None:
        """How many samples of a split the client has; None where it has none."""
        if self.pool("train") is not None:
            rows = self.rows(client, split)
            return None if rows is None else len(rows)
        samples = self.samples(client, split)
        return None if samples is None else samples.count

    @property
    def listed(self) -> bool:
        """Whether everybody's number of samples is known without making any."""
        return self.pool("train") is not None

    def pool(self, split: str = "train") -> Samples | None:
        """The tensors that all clients' `rows` point into; None where data is made on demand."""
        return None

    def rows(self, client: int, split: str = "train") -> IntArray | None:
        """The client's rows of `pool(split)`; None where there is no pool or the client has none there."""
        return None

    @abstractmethod
    def example(self) -> Samples:
        """One sample (first dimension 1), to learn shapes and types from; touches one client at most."""

    @abstractmethod
    def choose(self, clients: Sequence[int] | IntArray) -> FederatedData:
        """The federation of these clients only, in this order. Nothing is copied."""

    def publish(self, inputs: Inputs) -> FederatedData:
        """The same data, and inputs [n, ...] that everybody knows, without labels (for methods that distil)."""
        shape = shapes(self.example().inputs)
        if not len(inputs) or shapes(inputs) != shape:
            raise DataError(
                f"{len(inputs)} public inputs are of shape {shapes(inputs)}, the clients' of {shape}",
                hint="public data are inputs like the clients', at least one",
            )
        known = copy.copy(self)
        known.public = Samples(inputs, torch.zeros(len(inputs), dtype=torch.int64))
        return known

    def entrust(self, root: Samples) -> FederatedData:
        """The same data, and samples with targets that the server has (for `aggregate = "fltrust"`)."""
        shape = shapes(self.example().inputs)
        if not root.count or shapes(root.inputs) != shape:
            raise DataError(
                f"{root.count} root samples are of shape {shapes(root.inputs)}, the clients' of {shape}",
                hint="root data are like the clients', at least one sample",
            )
        known = copy.copy(self)
        known.root = root
        return known

    def augment(self, what: str | Callable[[Any], Any]) -> FederatedData:
        """The same data, whose training batches are changed anew each time they are read.

        Args:
            what: "flip", "crop:4", "noise:0.1" or several, "crop:4 + flip"; or a function of a batch's inputs [b, ...]
                that gives others of the same form. What it draws with torch's random functions comes from the client's
                own stream, so that runs repeat in every engine.

        Raises ConfigError where it does not fit the data.
        """
        made = augmentation(what)
        with seeds.scoped(0, "augment"):
            made.check(self.example().inputs)
        known = copy.copy(self)
        known.augmentation = made
        return known

    def weigh(self, weights: Weights) -> FederatedData:
        """The same data, and what clients count for where the server averages their replies.

        Args:
            weights: ``"equal"``; or a mapping from names, in which all others count for 1; or one number per client.
                As text, ``"north:2,south:0.5"``. Only ratios matter, and a client of weight 0 counts for nothing.

        Without it a client counts for its training samples, or for 1 where the method says that all count alike; a
        given weight takes the place of either. Nothing else changes: what clients do, and figures over samples.

        Raises ConfigError for an unknown client, and weights that are negative, not finite, or all 0.
        """
        known = copy.copy(self)
        known.weights = weights_of(self.names, weights)
        return known

    def report(self, limit: int = 200) -> PartitionReport:
        """Measure how the data is divided. Of a lazy population, `limit` evenly spaced clients are seen."""
        count = min(limit, len(self))
        chosen = np.unique(np.linspace(0, len(self) - 1, count).astype(np.int64))
        return measure(self, chosen)

    def holdout(self, amount: float | int, seed: int = 0) -> tuple[FederatedData, FederatedData]:
        """Divide the clients into those that train and those that never do (a share or a number of them).

        The official test set stays with both; where there is none, each half tests on its own clients' data.
        Raises `DataError` unless both halves keep at least one client.
        """
        count = round(amount * len(self)) if isinstance(amount, float) else amount
        if not 1 <= count < len(self):
            raise DataError(
                f"cannot hold out {amount} of {len(self)} clients",
                hint="both halves need at least one client",
            )
        order = rng(seed, "data.holdout").permutation(len(self))
        return self.choose(np.sort(order[count:])), self.choose(np.sort(order[:count]))

    def __repr__(self) -> str:
        kind = "regression" if self.classes is None else f"{self.classes} classes"
        return f"<FederatedData {self.dataset}, {self.partition}: {len(self):,} clients, {kind}>"

    def _repr_html_(self) -> str:
        return self.report()._repr_html_()

    def save(self, path: str | Path) -> Path:
        """Write pools and row lists to one ``.npz`` file that NumPy reads. Resident data only."""
        raise DataError("data that is made on demand cannot be saved", hint="save the function that makes it")

    @staticmethod
    def load(path: str | Path) -> FederatedData:
        """Read what `save` wrote; `DataError` for a file that is absent, damaged or of another kind."""
        known = read(Path(path))
        data = Resident(
            pools={split: known.pools[split] for split in known.rows},
            rows=known.rows,
            names=known.names,
            classes=known.classes,
            dataset=known.dataset,
            partition=known.partition,
            test_set=known.pools.get("official"),
        )
        data.public, data.root = known.pools.get("public"), known.pools.get("root")
        data.weights, data.mixture = known.weights, known.mixture
        return data

    def _position(self, client: int) -> int:
        if not 0 <= client < len(self):
            raise IndexError(f"client {client} of {len(self)}")
        return int(client)


class Resident(FederatedData):
    """Clients as row lists over tensors that stay in memory."""

    def __init__(
        self,
        *,
        pools: Mapping[str, Samples],
        rows: Mapping[str, Rows],
        names: Sequence[str],
        classes: int | None,
        dataset: str,
        partition: str,
        test_set: Samples | None = None,
    ) -> None:
        self.names = names
        self.classes = classes
        self.dataset = dataset
        self.partition = partition
        self._pools = dict(pools)
        self._rows = dict(rows)
        self._official = test_set
        sizes = self._sizes = self._rows["train"].sizes()
        if not len(sizes) or sizes.min() < 1:
            empty = [names[int(client)] for client in np.flatnonzero(sizes < 1)[:5]]
            raise DataError(
                f"{dataset}: clients without training data: {', '.join(empty)}"
                if empty
                else f"{dataset}: there are no clients",
                hint="leave out clients that have nothing",
            )

    @cached_property
    def _union(self) -> Samples | None:
        rows = self._rows.get("test")
        return None if rows is None or not len(rows.flat) else self._pools["test"].take(rows.flat)

    @property
    def test_set(self) -> Samples | None:
        return self._official if self._official is not None else self._union

    def size(self, client: int) -> int:
        return int(self._sizes[self._position(client)])

    def rows(self, client: int, split: str = "train") -> IntArray | None:
        _known(split)
        lists = self._rows.get(split)
        position = self._position(client)
        return None if lists is None or not len(lists[position]) else lists[position]

    def pool(self, split: str = "train") -> Samples | None:
        _known(split)
        return self._pools.get(split)

    def samples(self, client: int, split: str = "train") -> Samples | None:
        if split == "public":
            return self.public
        rows = self.rows(client, split)
        return None if rows is None else self._pools[split].take(rows)

    def example(self) -> Samples:
        return self._pools["train"].take(self._rows["train"][0][:1])

    def choose(self, clients: Sequence[int] | IntArray) -> FederatedData:
        positions = np.asarray(clients, dtype=np.int64)
        chosen = Resident(
            pools=self._pools,
            rows={split: rows.choose(positions) for split, rows in self._rows.items()},
            names=[self.names[int(position)] for position in positions],
            classes=self.classes,
            dataset=self.dataset,
            partition=self.partition,
            test_set=self._official,
        )
        chosen.public, chosen.scale, chosen.augmentation = self.public, self.scale, self.augmentation
        chosen.root = self.root
        chosen.weights = None if self.weights is None else scaled(self.weights[positions])
        chosen.mixture = None if self.mixture is None else self.mixture.choose(positions)
        return chosen

    def report(self, limit: int = 200) -> PartitionReport:
        return measure(self, np.arange(len(self)))

    def save(self, path: str | Path) -> Path:
        pools = {split: self._pools[split] for split in self._rows}
        aside = {"official": self._official, "public": self.public, "root": self.root}
        pools |= {name: samples for name, samples in aside.items() if samples is not None}
        return write(
            Path(path),
            Stored(
                pools,
                self._rows,
                self.names,
                self.classes,
                self.dataset,
                self.partition,
                self.weights,
                self.mixture,
            ),
        )


def pack(parts: Sequence[Samples | None]) -> tuple[Samples, Rows] | None:
    """One pool from one part per client (None for nothing); None where no client has any."""
    present = [part for part in parts if part is not None and part.count]
    if not present:
        return None
    lengths = [0 if part is None else part.count for part in parts]
    ends = np.cumsum(lengths, dtype=np.int64)
    return concatenate(present), Rows(np.arange(ends[-1], dtype=np.int64), ends)


def _known(split: str) -> None:
    if split not in SPLITS:
        raise DataError(f"there is no split {split!r}", hint="splits are train, validation and test")
