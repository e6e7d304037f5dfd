"""`Dataset`: samples in one place, before they are divided among clients."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atoll.errors import ConfigError, DataError
from atoll.parts import alone, shapes
from atoll.seeds import rng

from .division import Division, Partitioner, Place, deal_test, split_rows
from .federated import FederatedData, Resident
from .mixture import mixture
from .names import Names, Rows
from .samples import IntArray, Samples, concatenate, labels_of
from .scaling import agree, apply

if TYPE_CHECKING:
    from .partition.parse import PartitionLike

__all__ = ["Dataset", "check_splits", "resident"]


class Dataset:
    """Samples in one place.

    Attributes:
        name: what reports call it.
        train: the samples to divide.
        test: the official test samples, or None.
        classes: how many classes there are; None for a regression.
        columns: properties of the training rows by name (a writer, a hospital, a date), one value a row.
        test_columns: the same of the test rows, as far as they are known: a division by such a column gives every
            client the test rows of its own.
        natural: the column whose values are the natural clients, or None.
        features: what the inputs are called, where they are columns of a table; None otherwise.
        unscaled: of each feature, whether it still has to be scaled by sums over the clients, which happens when the
            data is divided among them (NaN is a gap until then); None where nothing has to.
        open: whether the number of classes was found here though other parts of the data may know better.
        in_client_test: the share of a client's rows kept for its test where the test split does not serve.
        description, license, source: text for reports and the catalogue.
    """

    def __init__(
        self,
        name: str,
        train: Samples,
        test: Samples | None = None,
        *,
        classes: int | None = None,
        columns: Mapping[str, Any] | None = None,
        natural: str | None = None,
        in_client_test: float = 0.2,
        description: str = "",
        license: str = "",
        source: str = "",
    ) -> None:
        self.name = name
        self.train = train
        self.test = test
        self.classes = classes
        self.columns: dict[str, NDArray[Any]] = {
            key: np.asarray(value) for key, value in (columns or {}).items()
        }
        self.test_columns: dict[str, NDArray[Any]] = {}
        self.natural = natural
        self.in_client_test = in_client_test
        self.features: tuple[str, ...] | None = None
        self.unscaled: NDArray[np.bool_] | None = None
        self.open = False
        self.description = description
        self.license = license
        self.source = source
        for key, value in self.columns.items():
            if len(value) != train.count:
                raise DataError(
                    f"{name}: column {key!r} has {len(value)} values for {train.count} training samples",
                    hint="columns describe training rows, one value each",
                )
        if natural is not None and natural not in self.columns:
            raise DataError(f"{name}: the natural column {natural!r} is not among the columns")
        if test is not None and shapes(test.inputs) != shapes(train.inputs):
            raise DataError(
                f"{name}: a training input has shape {shapes(train.inputs)}, a test input {shapes(test.inputs)}"
            )

    def __repr__(self) -> str:
        shape = shapes(self.train.inputs)
        kind = "regression" if self.classes is None else f"{self.classes} classes"
        test = f" + {self.test.count:,} test" if self.test is not None else ""
        natural = ""
        if self.natural is not None:
            clients = len(np.unique(self.columns[self.natural].astype(str)))
            natural = f", {clients} natural clients ({self.natural})"
        return f"<Dataset {self.name}: {self.train.count:,} train{test}, inputs {shape}, {kind}{natural}>"

    def partition(
        self,
        partitioner: PartitionLike,
        *,
        clients: int | None = None,
        seed: int = 0,
        test: str | float | None = "auto",
        validation: float | int = 0,
        public: float | int = 0,
        root: float | int = 0,
        mix: str | None = None,
    ) -> FederatedData:
        """Divide the training samples among clients.

        Args:
            partitioner: an object such as `Dirichlet(clients=50, alpha=0.3)`, or text such as
            ``"dirichlet:0.3"``.
            clients: how many, where the text does not imply it.
            seed: names all random choices; the same seed divides in the same way everywhere.
            test: where a client's test data come from. ``"auto"`` deals the official test split so that each
                client's share looks like its training data; with no such split, or clients that differ by
                nature, it keeps a share of each client's own rows (by label). A number in (0, 1) always does
                the latter. None gives clients no test data.
            validation: a share (float) or a count (int) of each client's remaining training rows.
            public: a share or a count of all training rows that no client gets: everybody knows them, without
                their labels (`FederatedData.publish`).
            root: a share or a count of all training rows, with their labels, that no client gets: they are the
                server's (`FederatedData.entrust`).

            mix: what the sources of a client's samples, by the natural column, count for in its batches: "equal",
                "temperature:2", or weights by name, "hamlet:2, romeo:0.5" (see `atoll.data.mixture`). By default their
                samples.

        Every client keeps at least one training sample. Raises `DataError` where the division is impossible.
        """
        from .partition.parse import resolve

        if public or root:
            name, amount = ("public", public) if public else ("root", root)
            rest, aside = self._set_aside(name, amount, seed)
            divided = rest.partition(
                partitioner, clients=clients, seed=seed, test=test, validation=validation,
                root=root if public else 0, mix=mix,
            )  # fmt: skip
            known = (
                aside.inputs
                if divided.scale is None
                else apply(alone(aside.inputs, "scale"), self.features or (), divided.scale)
            )
            return divided.publish(known) if public else divided.entrust(Samples(known, aside.targets))
        rule = resolve(partitioner, clients, self)
        check_splits(test, validation)
        division = rule.divide(self, seed)
        labels = labels_of(self.train, self.classes)
        train, tests, official = self._tests(rule, division, labels, seed, test)
        if division.validation is not None:
            if validation:
                raise DataError(f"{rule} fixes its own validation rows", hint="leave validation out")
            checks: list[IntArray] | None = division.validation
        elif validation:
            pairs = [
                split_rows(rows, labels, validation, rng(seed, "data.validation", client=client))
                for client, rows in enumerate(train)
            ]
            train, checks = [kept for kept, _ in pairs], [taken for _, taken in pairs]
        else:
            checks = None
        pools = {"train": self.train, "validation": self.train}
        pools["test"] = self.test if official and self.test is not None else self.train
        rows = {"train": train, "validation": checks, "test": tests}
        whole = self.test
        if rule.transforms:
            pools, rows = _transform(rule, pools, rows, self.classes, seed)
            whole = None
        divided = resident(
            self,
            {split: pools[split] for split, parts in rows.items() if parts is not None},
            {split: Rows.of(parts) for split, parts in rows.items() if parts is not None},
            whole,
            names=division.names if division.names is not None else Names(len(train)),
            classes=self.classes,
            dataset=self.name,
            partition=str(rule),
        )
        if mix is not None:
            divided.mixture = mixture(mix, self._sources(mix), train)
        return divided

    def _sources(self, mix: str) -> NDArray[Any]:
        """The source of every training row."""
        if self.natural is None:
            raise ConfigError(
                f"mix = {mix!r}, and {self.name!r} does not say where its samples are from",
                hint="leave it out, or name the column that says so: client=COLUMN",
            )
        return self.columns[self.natural]

    def _set_aside(self, name: str, amount: float | int, seed: int) -> tuple[Dataset, Samples]:
        """The data without some training rows, chosen at random, and these."""
        count = round(amount * self.train.count) if isinstance(amount, float) else amount
        if not 0 < count < self.train.count:
            raise DataError(
                f"{name} = {amount}, but {self.name} has {self.train.count:,} training samples",
                hint="a share below 1, or a number that leaves something to the clients",
            )
        order = rng(seed, f"data.{name}").permutation(self.train.count)
        return self.only(np.sort(order[count:])), self.train.take(order[:count])

    def only(self, rows: IntArray) -> Dataset:
        """The data with no other training rows than these."""
        rest = copy.copy(self)
        rest.train = self.train.take(rows)
        rest.columns = {key: value[rows] for key, value in self.columns.items()}
        return rest

    def _tests(
        self,
        rule: Partitioner,
        division: Division,
        labels: IntArray | None,
        seed: int,
        test: str | float | None,
    ) -> tuple[list[IntArray], list[IntArray] | None, bool]:
        """Training rows, test rows, and whether the latter point into the official test split."""
        if test is None:
            return division.train, None, False
        if test == "auto" and division.test is not None:
            return division.train, division.test, self.test is not None
        if test == "auto" and self.test is not None and not rule.in_client_test:
            return division.train, deal_test(self, division.train, seed), True
        share = self.in_client_test if isinstance(test, str) else float(test)
        pairs = [
            split_rows(rows, labels, share, rng(seed, "data.test", client=client))
            for client, rows in enumerate(division.train)
        ]
        return [kept for kept, _ in pairs], [taken for _, taken in pairs], False


def resident(
    data: Dataset, pools: dict[str, Samples], rows: dict[str, Rows], test_set: Samples | None, **about: Any
) -> Resident:
    """Divided data in memory; on one scale, by sums over the clients, where the dataset asks for that."""
    constants = None
    if data.unscaled is not None:
        names, train = data.features or (), rows["train"]
        constants = agree(pools["train"], [train[k] for k in range(len(train.ends))], names, data.unscaled)
        wanted = {id(part): part for part in (*pools.values(), *([] if test_set is None else [test_set]))}
        done = {
            at: part._replace(inputs=apply(alone(part.inputs, "scale"), names, constants))
            for at, part in wanted.items()
        }
        pools = {split: done[id(part)] for split, part in pools.items()}
        test_set = None if test_set is None else done[id(test_set)]
    made = Resident(pools=pools, rows=rows, test_set=test_set, **about)
    made.scale = constants
    return made


def check_splits(test: str | float | None, validation: float | int) -> None:
    """Refuse a `test` or `validation` outside its range."""
    if not (
        test is None
        or test == "auto"
        or (isinstance(test, (int, float)) and not isinstance(test, bool) and 0 < test < 1)
    ):
        raise DataError(
            f'test must be "auto", None or a share between 0 and 1, not {test!r}',
            hint="test=0.25 keeps a quarter of each client's rows",
        )
    if validation < 0 or (isinstance(validation, float) and validation >= 1):
        raise DataError(
            f"validation must be a share below 1 or a whole number, not {validation!r}",
            hint="validation=0.1 is a tenth of each client's rows, validation=64 is 64 rows",
        )


def _transform(
    rule: Partitioner,
    pools: dict[str, Samples],
    rows: dict[str, list[IntArray] | None],
    classes: int | None,
    seed: int,
) -> tuple[dict[str, Samples], dict[str, list[IntArray] | None]]:
    """Give every client its own changed copy of its rows, packed client after client."""
    new_pools, new_rows = dict(pools), dict(rows)
    for split, parts in rows.items():
        if parts is None:
            continue
        new_pools[split] = concatenate(
            [
                rule.transform(pools[split].take(part), Place(client, len(parts), classes, split, seed))
                for client, part in enumerate(parts)
            ]
        )
        ends = np.cumsum([len(part) for part in parts])
        new_rows[split] = [np.arange(end - len(part), end) for end, part in zip(ends, parts, strict=True)]
    return new_pools, new_rows
