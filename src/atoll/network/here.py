"""A node's own data: a federation of which one client is here.

A simulation reads all clients together, and some of what it does with a table follows from all of them: which columns
there are and in which order, the values of a category, the labels, which columns have gaps. A node is alone, and what
it saw in its own rows would fit nobody else's model. So these are stated in the coordinator's file, or refused; the
rest is read as `atoll.data.from_clients` reads it, to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from atoll import own as code
from atoll.data import Dataset, FederatedData, from_clients
from atoll.data.federate import split_files
from atoll.data.files import TABLES, read_table
from atoll.data.names import Names
from atoll.data.question import REGRESSION
from atoll.data.report import PartitionReport, measure
from atoll.data.samples import IntArray, Samples, labels_of
from atoll.data.table import Table, is_frame
from atoll.data.whole import is_pair, is_split
from atoll.data.wishes import read_classes, read_names, read_scale
from atoll.errors import AtollError, ConfigError, DataError, suggest
from atoll.network.wire import Plan
from atoll.parts import shapes

__all__ = ["Here", "Reading", "asked", "describe"]

_Words = str | tuple[str, ...] | None


class Reading(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a file becomes samples: the keys of a data file, as the coordinator's file has them."""

    label: str | None = None
    features: _Words = None
    categorical: _Words = None
    classes: int | str | tuple[int | str, ...] | None = None
    missing: Literal["drop", "zero", "mark"] | None = None
    scale: str | tuple[str, ...] | dict[str, float | tuple[float, ...]] | None = None
    ignore: int | None = None

    @staticmethod
    def of(plan: Plan) -> Reading:
        """What a plan says about data.  Raises ConfigError for keys and values that are not to be had."""
        given = {key: value for key, value in plan.data.items() if value is not None}
        strange = [key for key in given if key not in Reading.__struct_fields__]
        if strange:
            raise ConfigError(
                f"the coordinator's file has {strange[0]} for the data of nodes, and there is no such key",
                hint=suggest(strange[0], Reading.__struct_fields__),
            )
        try:
            return msgspec.convert(given, Reading)
        except msgspec.ValidationError as error:
            raise ConfigError(
                f"the coordinator's file says what cannot be about data: {error}",
                hint="all nodes read their data by its keys; they are those of `atoll run`",
            ) from None

    def options(self) -> dict[str, Any]:
        """What is given, as `from_clients` takes it."""
        return {key: value for key in self.__struct_fields__ if (value := getattr(self, key)) is not None}

    @property
    def columns(self) -> list[str]:
        """The columns that are learned from and predicted, as far as they are named."""
        named = [] if self.features is None else read_names(self.features, "features")
        return [*named, *([] if self.label is None else [self.label])]


class Here(FederatedData):
    """Data of which client `number` is here, and nobody else. `names` knows one name, too.

    Args:
        own: the federation of the one client.
        number: its position among all clients.
        name: what it is called.
        reading: how it was read.
        columns: what of a table, or which arrays of a file, were read.

    `Here.load` reads them. `own` is for what goes by position 0, such as trying a model on a few samples.
    """

    def __init__(
        self, own: FederatedData, number: int, name: str, reading: Reading, columns: Sequence[str]
    ) -> None:
        self.own, self.number, self.reading, self.columns = own, number, reading, tuple(columns)
        self.names = Names(number + 1, partial(_called, number, name))
        self.classes, self.dataset, self.partition = own.classes, own.dataset, "by node"

    @staticmethod
    def load(source: str, number: int, name: str, plan: Plan) -> Here:  # type: ignore[override]
        """What a node has, read as the plan says.

        Args:
            source: a .csv, .tsv, .parquet or .npz file, a folder with the files train and test, or the node's own code,
                "module:function", which is called without arguments and returns what `from_clients` takes as a client.

        Raises DataError for data that cannot be read, ConfigError for a plan that leaves open what a node cannot know.
        """
        reading = Reading.of(plan)
        value = _found(source)
        _check_stated(reading, value, source)
        data = from_clients(
            {name: value},
            test=plan.test,
            validation=plan.validation,
            seed=plan.seed,
            name=_title(source),
            start=number,
            **reading.options(),
        )
        _check_classes(data, reading, source)
        made = Here(data, number, name, reading, asked(source, plan))
        augmented = made if plan.augment is None else made.augment(plan.augment)
        assert isinstance(augmented, Here)
        return augmented

    @property
    def listed(self) -> bool:
        return False

    @property
    def test_set(self) -> Samples | None:
        return self.own.test_set

    def size(self, client: int) -> int:
        return self.own.size(self._mine(client))

    def held(self, client: int, split: str = "train") -> int | None:
        return self.own.held(self._mine(client), split)

    def samples(self, client: int, split: str = "train") -> Samples | None:
        return self.public if split == "public" else self.own.samples(self._mine(client), split)

    def pool(self, split: str = "train") -> Samples | None:
        return self.own.pool(split)

    def rows(self, client: int, split: str = "train") -> IntArray | None:
        return self.own.rows(self._mine(client), split)

    def example(self) -> Samples:
        return self.own.example()

    def choose(self, clients: Sequence[int] | IntArray) -> FederatedData:
        raise ConfigError("one client is here, and there is nobody to choose from")

    def report(self, limit: int = 200) -> PartitionReport:
        return measure(self, np.array([self.number]))

    def _mine(self, client: int) -> int:
        """Where the client stands in `own`.  Raises DataError for any other: their samples are elsewhere."""
        if client != self.number:
            raise DataError(
                f"an order for client {client}, and client {self.number} is here",
                hint="a node does its own client's work and nobody else's",
            )
        return 0


def _called(number: int, name: str, position: int) -> str:
    return name if position == number else f"client {position}"


# --- what is read ---------------------------------------------------------------------------------------------------


def asked(source: str, plan: Plan) -> list[str]:
    """The columns that a plan has read at a node, or the arrays of its .npz file; known before anything is read."""
    reading = Reading.of(plan)
    if Path(source).suffix.lower() == ".npz":
        return ["x", "y" if reading.label is None else reading.label]
    return reading.columns


def _is_code(source: str) -> bool:
    return code.named(source) == [source] and not Path(source).exists()


def _title(source: str) -> str:
    return source if _is_code(source) else Path(source).resolve().name


def _found(source: str) -> Any:
    """What a source stands for, as `from_clients` takes it.  Raises DataError, or ConfigError for code."""
    if _is_code(source):
        return _called_for(source)
    path = Path(source)
    if path.is_dir():
        split = split_files(path)
        if split is None:
            raise DataError(
                f"the folder {path} is not one client's data",
                hint="put train.csv, and test.csv if there is one (likewise .npz ...), into a folder of their own",
            )
        return split
    if not path.is_file():
        raise DataError(
            f"there is no file {path}",
            hint="data are a .csv, .tsv, .parquet or .npz file, a folder, or code of your own: module:function",
        )
    return path


def _called_for(source: str) -> Any:
    """What the node's own function returns."""
    code.admit(source, "data")
    function = code.found(source, "data")
    if not callable(function):
        raise ConfigError(
            f"data = {source!r} is a {type(function).__name__}, and no function", hint="return it from one"
        )
    try:
        return function()
    except AtollError:
        raise
    except Exception as error:
        raise DataError(
            f"data = {source!r} raised {type(error).__name__}: {error}",
            hint="it is called without arguments, and returns what atoll.data.from_clients takes as a client",
        ) from error


def _table_of(value: Any) -> Any:
    """The table among what a client has: a frame or the path of one; None where there is none."""
    if isinstance(value, Mapping):
        return _table_of(value["train"]) if is_split(value) else None
    if is_frame(value):
        return value
    suffixes = {each.lower() for each in Path(value).suffixes} if isinstance(value, str | Path) else set()
    return value if suffixes & set(TABLES) else None


# --- what must be stated --------------------------------------------------------------------------------------------


def _check_stated(reading: Reading, value: Any, source: str) -> None:
    """Refuse a plan that leaves to each node what all of them must do alike; says all of it at once."""
    table = _table_of(value)
    reasons: list[str] = []
    lines: list[str] = []
    if reading.classes is None:
        reasons.append("which classes there are (a site may lack some)")
        lines.append('classes = "no,yes" (the labels in order), 10 (0 to 9) or "regression"')
    if table is not None:
        names = _columns(table)
        if reading.label is None:
            reasons.append("which column is to be predicted")
            lines.append(f"label = one of {', '.join(names)}")
        if reading.features is None:
            reasons.append("which columns there are, in which order (they differ from site to site)")
            rest = ",".join(each for each in names if each != reading.label)
            lines.append(f'features = "{rest}"')
        for column in _open_categories(reading):
            reasons.append(f"which values {column} has (categories differ from site to site)")
            lines.append(f'categorical = "{column}:no|yes", every value')
        if reading.missing == "mark":
            reasons.append("which columns have gaps (they differ from site to site)")
            lines.append('missing = "zero" or "drop"')
        if reading.scale is not None and _federated(reading.scale):
            reasons.append("mean and deviation of the columns (sums over nodes are not to be had yet)")
            lines.append('scale = "age:50:15", for (age - 50) / 15')
    elif is_pair(value) and is_frame(value[0]):
        raise ConfigError(
            f"{source} returns a frame and its targets apart, and nothing says in which order columns stand",
            hint="return one frame with the label in it, or an array of numbers: frame.to_numpy()",
        )
    elif isinstance(value, Dataset):
        _check_dataset(reading, value, source)
    if reasons:
        raise ConfigError(
            f"{source} cannot be read alone: the coordinator's file does not say {'; '.join(reasons)}",
            hint=f"write into the coordinator's file: {'; '.join(lines)}",
        )


def _columns(table: Any) -> list[str]:
    """The columns of a table, for errors."""
    read = read_table(Path(table)) if isinstance(table, str | Path) else Table.of(table, "frame")
    return read.names


def _check_dataset(reading: Reading, made: Dataset, source: str) -> None:
    """A dataset is taken as it is; it must have been made as the plan has tables read."""
    if made.unscaled is not None:
        raise ConfigError(
            f"{source} returns a dataset that is to be scaled by sums over the clients, and a node is alone",
            hint='give constants: scale={"age": (50, 15)}',
        )
    if made.features is None:
        return
    stated = _inputs(reading)
    if list(made.features) != stated:
        says = ", ".join(stated) or "none"
        raise ConfigError(
            f"{source} returns inputs called {', '.join(made.features)}, and the coordinator's file says {says}",
            hint="make them as its keys features and categorical say, which all nodes do alike",
        )


def _inputs(reading: Reading) -> list[str]:
    """What inputs are called, as far as the plan says; see `atoll.data.encoding`."""
    levels: dict[str, list[str]] = {}
    for entry in read_names(reading.categorical or (), "categorical"):
        column, colon, values = entry.rpartition(":")
        levels[column.strip()] = [each.strip() for each in values.split("|")] if colon else []
    features = read_names(reading.features or (), "features")
    named = [[f"{each}={level}" for level in levels[each]] if each in levels else [each] for each in features]
    return [name for names in named for name in names]


def _open_categories(reading: Reading) -> list[str]:
    """Columns to encode whose values are not stated; a name with a colon is a column's if it is a feature."""
    if reading.categorical is None:
        return []
    features = set() if reading.features is None else {*read_names(reading.features, "features")}
    entries = read_names(reading.categorical, "categorical")
    if entries == ["text"]:
        return ["each column of text"]
    return [each for each in entries if ":" not in each or each in features]


def _federated(scale: Any) -> bool:
    return read_scale(scale) == "federated"


def _check_classes(data: FederatedData, reading: Reading, source: str) -> None:
    """Refuse samples that the node's own code made with other classes than the plan's."""
    stated = read_classes(reading.classes)
    count = None if stated == REGRESSION else stated if isinstance(stated, int) else len(stated)
    if data.classes != count:
        has = "numbers to predict" if data.classes is None else f"{data.classes} classes"
        says = "numbers to predict" if count is None else f"{count} classes"
        raise ConfigError(
            f"{source} has {has}, and the coordinator's file says {says}",
            hint=f"make the samples with classes={reading.classes!r}, or correct classes in the coordinator's file",
        )


# --- what it is -----------------------------------------------------------------------------------------------------


def describe(here: Here) -> list[str]:
    """What a node has, for a person: how many samples, of which columns, of which classes."""
    number, counts = here.number, []
    for split, use in (("train", "to train on"), ("validation", "to validate on"), ("test", "to test on")):
        held = here.held(number, split)
        counts += [f"{held:,} {use}"] if held else []
    lines = [f"samples: {', '.join(counts)}"]
    inputs = f"inputs: of shape {shapes(here.example().inputs)}"
    if here.columns:
        *features, label = here.columns
        inputs += f", from {', '.join(features)}; to predict: {label}"
    lines.append(inputs)
    train = here.samples(number)
    assert train is not None
    labels = labels_of(train, here.classes)
    if here.classes is None:
        low, high = float(train.targets.min()), float(train.targets.max())
        lines.append(f"targets: numbers from {low:g} to {high:g}")
    elif labels is None:
        lines.append(f"targets: {here.classes} classes, several a sample")
    else:
        stated = read_classes(here.reading.classes)
        names = range(here.classes) if isinstance(stated, int) else stated
        found = np.bincount(labels[labels >= 0], minlength=here.classes)
        shares = [
            f"{name} {100 * each / max(found.sum(), 1):.0f} %"
            for name, each in zip(names, found, strict=True)
        ]
        lines.append(f"classes: {', '.join(shares)}")
    return lines
