"""Clients that exist already, and the one function that takes whatever a person has."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils import data as torch_data

from atoll.errors import ConfigError, DataError
from atoll.machine import threads
from atoll.parts import shapes, tensors
from atoll.seeds import rng

from .dataset import Dataset, check_splits, resident
from .division import split_rows
from .encoding import Pair
from .federated import FederatedData, pack
from .files import TABLES
from .hub import is_hf
from .lazy import from_function
from .media import FORM, media_of
from .options import call
from .question import UNASKED, ask
from .samples import Pad, Samples, as_samples, labels_of, levelled
from .table import is_frame
from .whole import as_dataset, encoded, in_order, is_pair, is_split, tables_of
from .wishes import Classes, read_classes

__all__ = ["as_federated", "from_clients", "read_folder", "split_files"]

_FOLDERS = (
    "a folder holds a .csv, .tsv, .parquet or .npz file for each client, or the folders train and test of these; or"
    f" train.csv and test.csv (likewise .npz ...), to be divided; or LEAF's .json files; or {FORM}"
)


def from_clients(
    clients: Mapping[str, Any] | Sequence[Any],
    *,
    test: tuple[Any, Any] | str | float | None = "auto",
    validation: float | int = 0,
    classes: Classes = None,
    seed: int = 0,
    name: str = "clients",
    start: int = 0,
    **options: Any,
) -> FederatedData:
    """Natural clients: one dataset each.

    Args:
        clients: name -> data of any kind that `as_dataset` takes. A sequence names its clients 0, 1, ...
            Inputs that lie in memory one after the other, the slices of one array, are used where they are.
        test: ``"auto"`` keeps a client's own test split, or a fifth of its rows where it has none; a number
            keeps that share of its rows; None gives no client test data; a pair (x, y) is a global test set
            instead.
        validation: a share or count of each client's training rows.
        classes: how many, or the labels in order; found over all clients otherwise.
        seed: names the random choices.
        name: what reports call the data.
        start: the position of the first of these clients, where they are some of several: what is drawn for a client
            follows from `seed` and its position.
        options: such as `label`, `keys` or `features`, for the function that reads a client's data.

    Raises `DataError` naming the client for data that cannot be read, is empty, or differs in shape from the
    others.
    """
    named = (
        dict(clients) if isinstance(clients, Mapping) else {str(k): data for k, data in enumerate(clients)}
    )
    if not named:
        raise DataError(f"{name}: there are no clients")
    check_splits(None if isinstance(test, tuple) else test, validation)
    classes = read_classes(classes)
    with threads(1):  # of many small arrays: several would wait for each other longer than they work
        found = _datasets(named, name, {**options, "classes": UNASKED if classes is None else classes})
    found = _levelled(found, options.get("pad"))
    (first, model), trains, tests, checks = next(iter(found.items())), [], [], []
    for position, (client, own) in enumerate(found.items(), start):
        own = in_order(own, model, f"{name}, client {client!r}", f"client {first!r}")
        _alike(f"{name}, client {client!r}", own, first, model)
        train, held = own.train, own.test
        if isinstance(test, tuple) or test is None:
            held = None
        elif held is None or test != "auto":
            share = own.in_client_test if isinstance(test, str) else float(test)
            train, held = _split(train, own.classes, share, rng(seed, "data.test", client=position))
        train, check = _split(train, own.classes, validation, rng(seed, "data.validation", client=position))
        trains.append(train)
        tests.append(held)
        checks.append(check)
    counts = [own.classes or 0 for own in found.values()]
    if classes is not None and not isinstance(classes, str):  # datasets may have been made without them
        counts.append(classes if isinstance(classes, int) else len(classes))
    count = None if model.classes is None else max(counts)
    packed = {"train": pack(trains), "validation": pack(checks), "test": pack(tests)}
    known = classes if classes is not None else count
    official = as_samples(test[0], test[1], known, f"{name}, test")[0] if isinstance(test, tuple) else None
    return resident(
        model,
        {split: pair[0] for split, pair in packed.items() if pair is not None},
        {split: pair[1] for split, pair in packed.items() if pair is not None},
        official,
        names=list(map(str, named)),
        classes=count,
        dataset=name,
        partition="by client",
    )


def _datasets(named: Mapping[str, Any], name: str, options: dict[str, Any]) -> dict[str, Dataset]:
    """Each client's data. Tables are read as one whole; what targets are is asked of all of them together."""
    tables: dict[str, Pair] = {}
    for client, data in named.items():
        try:
            pair = tables_of(data)
        except DataError as error:
            raise DataError(f"{name}, client {client!r}: {error.message}", hint=error.hint) from error
        if pair is not None:
            tables[client] = pair
    titles = {client: f"{name}, client {client!r}" for client in named}
    made = encoded({titles[each]: pair for each, pair in tables.items()}, name, options) if tables else {}
    found = {
        client: made[titles[client]] if client in tables else _client(data, titles[client], options)
        for client, data in named.items()
    }
    if all(data.open for data in found.values()):
        kinds = {data.classes is None for data in found.values()}
        if len(kinds) == 1:
            parts = [
                part.targets
                for data in found.values()
                for part in (data.train, data.test)
                if part is not None
            ]
            ask(parts, name)
    return found


def _levelled(found: dict[str, Dataset], pad: Pad) -> dict[str, Dataset]:
    """The same with samples of one shape, where there is something to fill the shorter ones up with."""
    if pad is None:
        return found
    splits = [(client, split) for client, own in found.items() for split in ("train", "test")]
    splits = [each for each in splits if getattr(found[each[0]], each[1]) is not None]
    even = dict(
        zip(splits, levelled([getattr(found[client], split) for client, split in splits], pad), strict=True)
    )
    made = {client: copy.copy(own) for client, own in found.items()}
    for (client, split), samples in even.items():
        setattr(made[client], split, samples)
    return made


def _client(data: Any, where: str, options: dict[str, Any]) -> Dataset:
    try:
        return as_dataset(data, **options)
    except DataError as error:
        raise DataError(f"{where}: {error.message}", hint=error.hint) from error


def _alike(where: str, own: Dataset, other: str, model: Dataset) -> None:
    """All clients need the same features and the same kind of target."""

    def form(data: Dataset) -> str:
        x, y = data.train
        kind = "classes" if data.classes is not None else "numbers"
        types = ", ".join(dict.fromkeys(str(part.dtype)[6:] for part in tensors([x])))
        return f"inputs {shapes(x)} {types} and targets {tuple(y.shape[1:])} {kind}"

    if form(own) != form(model):
        raise DataError(
            f"{where} has {form(own)}, but client {other!r} has {form(model)}",
            hint="all clients need the same features and the same kind of target",
        )


def _split(
    samples: Samples, classes: int | None, amount: float | int, generator: np.random.Generator
) -> tuple[Samples, Samples | None]:
    kept, taken = split_rows(np.arange(samples.count), labels_of(samples, classes), amount, generator)
    return (samples.take(kept), samples.take(taken)) if len(taken) else (samples, None)


def as_federated(
    data: Any,
    partition: Any = None,
    *,
    clients: int | None = None,
    seed: int = 0,
    test: Any = "auto",
    validation: float | int = 0,
    **options: Any,
) -> FederatedData:
    """Federated data from anything that a person may have.

    Federated data comes back as it is. A mapping from names to data, a list of datasets, and a folder (of
    LEAF's JSON files, or with one table or .npz file per client) are natural clients. A function of the
    client's number needs `clients`. Data in one place, also a folder of ``train.csv`` and ``test.csv`` or of
    recordings or pictures, is divided by `partition`, or along its natural column. `options` (such as `label`) go
    to the function that reads the data.

    Raises `DataError` that lists what is accepted for data of an unknown kind, and one that shows how to
    divide data in one place where nothing says how.
    """
    if isinstance(data, FederatedData):
        if partition is not None or clients is not None:
            raise ConfigError("the data is divided already", hint="leave partition and clients out")
        return data
    if not _in_one_place(data):
        if partition is not None:
            raise ConfigError("these are clients already; a partition cannot divide them again")
        if isinstance(data, (str, Path)):
            return _clients_of(Path(data), test, validation, seed, options)
        if callable(data):
            if clients is None:
                raise DataError(
                    "a function of the client's number needs the population", hint="pass clients=1000"
                )
            return call(from_function, "a population made on demand", options, data, clients)
        return from_clients(data, test=test, validation=validation, seed=seed, **options)
    whole = as_dataset(split_files(data) or data, **options)
    if partition is None:
        if whole.natural is None:
            raise DataError(
                f"{whole.name!r} is in one place: how is it divided among clients?",
                hint='pass partition="iid" or "dirichlet:0.3" with clients=10, or name the client column',
            )
        partition = "natural"
    return whole.partition(partition, clients=clients, seed=seed, test=test, validation=validation)


def _in_one_place(data: Any) -> bool:
    if isinstance(data, (str, Path)):
        return not Path(data).is_dir() or split_files(data) is not None or media_of(Path(data)) is not None
    if isinstance(data, Mapping):
        together = is_hf(data) or all(is_hf(part) for part in data.values()) or {"x", "y"} <= set(data)
        return together or is_split(data)
    if isinstance(data, (list, tuple)) and data and not is_pair(data):
        return not all(_is_client(part) for part in data)
    return not callable(data) or hasattr(data, "__getitem__") or isinstance(data, (Dataset, type))


def _is_client(value: Any) -> bool:
    if (
        isinstance(value, (Dataset, torch_data.Dataset, torch_data.DataLoader))
        or is_frame(value)
        or is_hf(value)
    ):
        return True
    return is_pair(value) and np.ndim(value[1]) > 0 and len(value[0]) == len(value[1])


def read_folder(
    path: Path, *, test: Any = "auto", validation: float | int = 0, seed: int = 0, **options: Any
) -> Dataset | FederatedData:
    """What a folder holds: one dataset, of ``train.csv`` and ``test.csv`` or of recordings or pictures, or clients.

    Raises DataError for a folder that is neither, which says what would be read.
    """
    split = split_files(path)
    if split is not None or media_of(path) is not None:
        return as_dataset(split or path, **options)
    return _clients_of(path, test, validation, seed, options)


def split_files(data: Any) -> dict[str, Path] | None:
    """The files train and test (or train alone) of a folder that holds no others; None for whatever else."""
    if not isinstance(data, (str, Path)) or not Path(data).is_dir() or (Path(data) / "train").is_dir():
        return None
    found = _files(Path(data))
    return found if "train" in found and set(found) <= {"train", "test"} else None


def _clients_of(
    path: Path, test: Any, validation: float | int, seed: int, options: dict[str, Any]
) -> FederatedData:
    from .leaf import load_leaf

    own, tests = _files(path / "train" if (path / "train").is_dir() else path), _files(path / "test")
    if not own:
        if not any(any(path.glob(f"{inner}*.json")) for inner in ("", "train/", "data/", "data/train/")):
            raise DataError(f"there are no data in the folder {path}", hint=_FOLDERS)
        settings = {"test": test, "validation": validation, "seed": seed, **options}
        return call(load_leaf, f"the folder {path}", settings, path)
    absent = [client for client in tests if client not in own]
    if absent:
        raise DataError(
            f"{path}: test has a file of client {absent[0]!r}, train has none",
            hint="each client needs a file in train",
        )
    clients: dict[str, Any] = {
        client: {"train": file, "test": tests[client]} if client in tests else file
        for client, file in own.items()
    }
    return from_clients(clients, test=test, validation=validation, seed=seed, name=path.name, **options)


def _files(path: Path) -> dict[str, Path]:
    """The data files of a folder, one a client."""
    kinds = {*TABLES, ".npz"}
    found: dict[str, Path] = {}
    for file in sorted(path.iterdir()) if path.is_dir() else ():
        if not file.is_file() or not kinds & {part.lower() for part in file.suffixes}:
            continue
        client = file.name
        for suffix in reversed(file.suffixes):
            if suffix.lower() in (*kinds, ".gz", ".xz", ".bz2"):
                client = client.removesuffix(suffix)
        if client in found:
            raise DataError(
                f"{path}: {found[client].name} and {file.name} are one client", hint="one file a client"
            )
        found[client] = file
    return found
