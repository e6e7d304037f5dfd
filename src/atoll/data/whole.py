"""One dataset from whatever holds samples in one place."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils import data as torch_data

from atoll import spec
from atoll.errors import DataError

from .arrays import from_arrays, from_torch
from .catalogue import catalogue, load
from .dataset import Dataset
from .encoding import Pair, encode
from .files import TABLES, from_file, read_table
from .frames import from_frame
from .hub import from_hf, is_hf
from .media import from_media, media_of
from .options import call
from .question import UNASKED, ask
from .samples import levelled
from .table import Table, is_frame

__all__ = ["as_dataset", "encoded", "in_order", "is_pair", "is_split", "tables_of"]

_ACCEPTED = (
    "FederatedData, Dataset, (x, y) arrays or tensors, a PyTorch dataset or DataLoader, a pandas or polars "
    "frame, a Hugging Face dataset, a .csv/.tsv/.parquet/.npz file, a folder, the name of a dataset, "
    "a mapping from client names to any of these, or a function of the client's number"
)


def as_dataset(data: Any, **options: Any) -> Dataset:
    """One dataset from anything that holds samples in one place; `options` go to the `from_...` it needs.

    ``{"train": ..., "test": ...}`` joins two of them into one dataset with an official test split.
    """
    if isinstance(data, Dataset):
        return data
    what = f"data of type {type(data).__name__}"
    if is_frame(data):
        return call(from_frame, what, options, data)
    if is_hf(data) or (isinstance(data, Mapping) and data and all(is_hf(part) for part in data.values())):
        return call(from_hf, what, options, data)
    if isinstance(data, (torch_data.Dataset, torch_data.DataLoader)):
        return call(from_torch, what, options, data)
    if isinstance(data, (str, Path)):
        return _named(data, options)
    if is_pair(data):
        return call(from_arrays, what, options, *data)
    if isinstance(data, Mapping) and {"x", "y"} <= set(data):
        return call(from_arrays, what, options, data["x"], data["y"])
    if is_split(data):
        return _joined(data, options)
    if _is_array(data) and not isinstance(data, list):
        raise DataError("there are inputs without targets", hint="pass a pair (x, y)")
    if (
        hasattr(data, "__getitem__")
        and hasattr(data, "__len__")
        and not isinstance(data, (Mapping, tuple, bytes))
    ):
        return call(from_torch, what, options, data)
    raise DataError(f"cannot learn from data of type {type(data).__name__}", hint=f"accepted: {_ACCEPTED}")


def _is_array(value: Any) -> bool:
    return isinstance(value, (torch.Tensor, list)) or hasattr(value, "__array__") or hasattr(value, "toarray")


def is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and _is_array(value[0]) and _is_array(value[1])


def is_split(value: Any) -> bool:
    return isinstance(value, Mapping) and "train" in value and set(value) <= {"train", "test"}


def _joined(data: Mapping[str, Any], options: dict[str, Any]) -> Dataset:
    if data.get("test") is None:
        return as_dataset(data["train"], **options)
    pair = tables_of(data)
    if pair is not None:
        title = Path(pair[0].name).name
        return encoded({title: pair}, "tables", options)[title]
    unasked = options.get("classes") is UNASKED
    options = options if options.get("classes") is not None else {**options, "classes": UNASKED}
    train, test = (as_dataset(data[split], **options) for split in ("train", "test"))
    test = in_order(test, train, "test")
    if train.open and test.open and not unasked:
        ask([train.train.targets, test.train.targets], train.name)
    if (train.classes is None) != (test.classes is None):
        raise DataError(
            "training and test targets differ in kind", hint="both whole numbers, or both floating"
        )
    learned, held = levelled([train.train, test.train], options.get("pad"))
    whole = Dataset(
        train.name,
        learned,
        held,
        classes=None if train.classes is None else max(train.classes, test.classes or 0),
        columns=train.columns,
        natural=train.natural,
    )
    whole.features, whole.open = train.features, unasked and train.open
    return whole


def tables_of(data: Any) -> Pair | None:
    """The table, and the test table, of data that is one: a frame, a file, or a split of these."""
    if isinstance(data, Mapping):
        parts = [tables_of(data.get(split)) for split in ("train", "test")] if is_split(data) else [None]
        train, test = parts[0], parts[-1]
        complete = train is not None and (test is not None or data.get("test") is None)
        return (train[0], test and test[0]) if train is not None and complete else None
    if is_frame(data):
        return Table.of(data, "frame"), None
    suffixes = {suffix.lower() for suffix in Path(data).suffixes} if isinstance(data, (str, Path)) else set()
    return (read_table(Path(data)), None) if suffixes & set(TABLES) else None


def encoded(tables: Mapping[str, Pair], what: str, options: Mapping[str, Any]) -> dict[str, Dataset]:
    return call(encode, what, options, tables)


def in_order(own: Dataset, model: Dataset | None, where: str, other: str = "the training data") -> Dataset:
    """A dataset with its features in the order of another one's, by their names.  Raises DataError."""
    if model is None or own.features == model.features or own.features is None or model.features is None:
        return own
    for one, two, message in (
        (own.features, model.features, f"{where} has a column {{!r}} that {other} has not"),
        (model.features, own.features, f"{where} has no column {{!r}}, and {other} has it"),
    ):
        if extra := [name for name in one if name not in two]:
            raise DataError(
                message.format(extra[0]), hint="all clients need the same features; rename the columns"
            )
    order = torch.tensor([own.features.index(name) for name in model.features])
    turned = copy.copy(own)
    turned.train = own.train._replace(inputs=own.train.inputs[:, order])
    turned.test = None if own.test is None else own.test._replace(inputs=own.test.inputs[:, order])
    turned.features = model.features
    return turned


def _named(data: str | Path, options: dict[str, Any]) -> Dataset:
    name = str(data)
    known = {entry.name for entry in catalogue()}
    bare = isinstance(data, str) and not Path(name).suffix and "/" not in name and not Path(name).is_dir()
    if isinstance(data, str) and (spec.parse(name, "dataset").name == "synthetic" or name in known or bare):
        return load(name, **options)
    if media_of(Path(data)) is not None:
        return from_media(Path(data), **options)
    return call(from_file, name, options, data)
