"""A node's own data: a federation of which one client is here, read to the bit as a simulation of all would read it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from atoll import own as code
from atoll.data import FederatedData, from_clients
from atoll.data.federate import split_files
from atoll.data.media import media_of
from atoll.data.names import Names
from atoll.data.question import REGRESSION
from atoll.data.report import PartitionReport, measure
from atoll.data.samples import IntArray, Samples, labels_of
from atoll.data.wishes import read_classes
from atoll.errors import AtollError, ConfigError, DataError
from atoll.network.reading import Reading, asked, check_stated, read_texts
from atoll.network.wire import Plan
from atoll.parts import shapes, tensors

__all__ = ["Here", "describe"]


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
    def load(  # type: ignore[override]
        source: str,
        number: int,
        name: str,
        plan: Plan,
        make: Callable[[], Any] | None = None,
        tokenizer: str | None = None,
    ) -> Here:
        """What a node has, read as the plan says.

        Args:
            source: a .csv, .tsv, .parquet or .npz file, a folder with the files train and test, one of recordings or of
                pictures (all of them are this client's), or the node's own code, "module:function", which is called
                without arguments and returns what `from_clients` takes as a client; where the plan reads texts, a file
                or a folder of them.
            make: that function itself, where `source` is no more than what it is called.
            tokenizer: the folder of the tokenizer that texts are read by.

        Raises DataError for data that cannot be read, ConfigError for a plan that leaves open what a node cannot know.
        """
        reading = Reading.of(plan)
        if reading.texts is not None and (make is not None or _is_code(source)):
            raise ConfigError(
                f"{source} is code, and the run reads texts by itself",
                hint="name a file, or a folder of .txt files",
            )
        value = read_texts(reading, source, tokenizer)
        if value is None:
            value = _found(source) if make is None else _made(make, source)
            check_stated(reading, value, source)
        data = from_clients(
            {name: value},
            test=plan.test,
            validation=plan.validation,
            seed=plan.seed,
            name=_title(source),
            start=number,
            **reading.options(),
        )
        if reading.texts is None:
            _check_classes(data, reading, source)
        made = Here(data, number, name, reading, asked(source, plan))
        augmented = made if plan.augment is None else made.augment(plan.augment)
        assert isinstance(augmented, Here)
        return augmented

    @staticmethod
    def of_root(source: str, plan: Plan, tokenizer: str | None = None) -> Here:
        """What a coordinator has itself, for a rule that compares with the server's own update: all of it to train on.

        Raises as `load` does.
        """
        whole = msgspec.structs.replace(plan, test=None, validation=0, augment=None)
        return Here.load(source, 0, "root", whole, tokenizer=tokenizer)

    @property
    def sha256(self) -> str:
        """Of the training samples."""
        samples = self.samples(self.number)
        assert samples is not None
        digest = hashlib.sha256()
        for part in tensors([samples.inputs, samples.targets]):
            digest.update(f"{part.dtype} {tuple(part.shape)}".encode() + part.contiguous().numpy().tobytes())
        return digest.hexdigest()

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
        if split is None and media_of(path) is None:
            raise DataError(
                f"the folder {path} is not one client's data",
                hint="put train.csv, and test.csv if there is one (likewise .npz ...), or recordings or pictures by"
                " class, into a folder of their own",
            )
        return split or path
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
    return _made(function, source)


def _made(function: Callable[[], Any], source: str) -> Any:
    """What a function returns that makes a client's data.  Raises DataError."""
    try:
        return function()
    except AtollError:
        raise
    except Exception as error:
        raise DataError(
            f"data = {source!r} raised {type(error).__name__}: {error}",
            hint="it is called without arguments, and returns what atoll.data.from_clients takes as a client",
        ) from error


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
    if here.reading.texts is not None:
        inputs += f", tokens of {here.reading.texts}; to predict: the token that comes next"
    elif here.reading.rate is not None or here.reading.pixels is not None:
        what = "recordings" if here.reading.pixels is None else "pictures"
        inputs += f", from {what}; to predict: the class whose folder they are in"
    elif here.columns:
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
