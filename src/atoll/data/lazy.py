"""Populations that are a function from number to data: a million clients in the space of a few."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from atoll.errors import DataError

from .federated import SPLITS, FederatedData
from .names import Names
from .question import REGRESSION, UNASKED, ask
from .samples import IntArray, Samples, as_samples
from .weights import scaled
from .whole import as_dataset
from .wishes import Classes, read_classes

__all__ = ["Lazy", "from_function"]


class Lazy(FederatedData):
    """Clients made on demand; the most recent `cache` of them are kept."""

    def __init__(
        self,
        function: Callable[[int], Any],
        names: Sequence[str],
        *,
        classes: int | None,
        size: int | Callable[[int], int] | None,
        dataset: str,
        test_set: Samples | None,
        cache: int,
        reading: Classes = None,
        positions: IntArray | None = None,
    ) -> None:
        self.names = names
        self.classes = classes
        self.dataset = dataset
        self.partition = "on demand"
        self._function = function
        self._size = size
        self._test_set = test_set
        self._cache = cache
        self._reading = reading
        self._positions = positions
        self._kept: OrderedDict[int, dict[str, Samples]] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """What a copy has, here or in another process: not the clients that were made."""
        return {name: value for name, value in vars(self).items() if name not in ("_kept", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _kept=OrderedDict(), _lock=threading.Lock())

    @property
    def test_set(self) -> Samples | None:
        return self._test_set

    def _id(self, client: int) -> int:
        position = self._position(client)
        return position if self._positions is None else int(self._positions[position])

    def _load(self, number: int) -> dict[str, Samples]:
        with self._lock:
            if number in self._kept:
                self._kept.move_to_end(number)
                return self._kept[number]
        made = self._make(number)
        with self._lock:
            self._kept[number] = made
            while len(self._kept) > self._cache:
                self._kept.popitem(last=False)
        return made

    def _make(self, number: int) -> dict[str, Samples]:
        where = f"{self.dataset}, client {number}"
        value = self._function(number)
        if not isinstance(value, Mapping):
            value = {"train": value}
        if "train" not in value or any(key not in SPLITS for key in value):
            raise DataError(
                f"{where}: the function returned a mapping with keys {sorted(map(str, value))}",
                hint="return (inputs, targets), or a mapping with train and, if wanted, validation and test",
            )
        made = {}
        for split, part in value.items():
            x, y = _pair(part, f"{where}, {split}")
            if split != "train" and len(x) == 0:
                continue
            made[split], _ = as_samples(x, y, self._reading, f"{where}, {split}")
        return made

    def size(self, client: int) -> int:
        number = self._id(client)
        if self._size is None:
            return self._load(number)["train"].count
        return self._size if isinstance(self._size, int) else int(self._size(number))

    def samples(self, client: int, split: str = "train") -> Samples | None:
        if split == "public":
            return self.public
        if split not in SPLITS:
            raise DataError(f"there is no split {split!r}", hint="splits are train, validation and test")
        number = self._id(client)
        made = self._load(number)
        if split == "train" and self._size is not None and made["train"].count != self.size(client):
            raise DataError(
                f"{self.dataset}, client {number}: {made['train'].count} samples, "
                f"but size says {self.size(client)}",
                hint="make size= agree with the function, or leave it out",
            )
        return made.get(split)

    def example(self) -> Samples:
        first = self.samples(0)
        assert first is not None
        return first.take(slice(0, 1))

    def choose(self, clients: Sequence[int] | IntArray) -> FederatedData:
        positions = np.asarray(clients, dtype=np.int64)
        whole = self.names
        chosen = Lazy(
            self._function,
            Names(len(positions), lambda position: whole[position], positions),
            classes=self.classes,
            size=self._size,
            dataset=self.dataset,
            test_set=self._test_set,
            cache=self._cache,
            reading=self._reading,
            positions=positions if self._positions is None else self._positions[positions],
        )
        chosen.public, chosen.root, chosen.augmentation = self.public, self.root, self.augmentation
        chosen.weights = None if self.weights is None else scaled(self.weights[positions])
        return chosen


def _pair(value: Any, where: str) -> tuple[Any, Any]:
    """Inputs and targets of one split: a pair as it stands, or the content of any dataset."""
    if (
        isinstance(value, (tuple, list))
        and len(value) == 2
        and all(hasattr(part, "__len__") for part in value)
    ):
        return value[0], value[1]
    try:
        return as_dataset(value, classes=UNASKED).train
    except DataError as error:
        raise DataError(f"{where}: {error.message}", hint=error.hint) from error


def from_function(
    function: Callable[[int], Any],
    clients: int,
    classes: Classes = None,
    *,
    size: int | Callable[[int], int] | None = None,
    names: Sequence[str] | Callable[[int], str] | None = None,
    test: tuple[Any, Any] | None = None,
    name: str = "function",
    cache: int = 64,
) -> FederatedData:
    """A population made on demand: ``function(number) -> (inputs, targets)``, from 0 to clients - 1.

    Args:
        function: must give the same data whenever it is asked for the same client. It may also return a
            mapping ``{"train": (x, y), "validation": ..., "test": ...}``.
        clients: the population. Memory does not grow with it.
        classes: how many classes there are, or their labels in order, or "regression". Without it the first client's
            targets must have fractions: then it is a regression, and otherwise asked for.
        size: the number of training samples, one for all or a function of the number. Without it, asking for
            a client's size makes its data.
        names: ids, as a sequence or a function of the number; the number itself by default.
        test: a global test set, (inputs, targets).
        cache: how many of the last clients stay in memory.
    """
    if clients < 1:
        raise DataError(f"a population needs at least one client, not {clients}")
    if cache < 1:
        raise DataError(f"cache must be at least 1, not {cache}")
    if names is None or callable(names):
        ids: Sequence[str] = Names(clients, names if names is not None else str)
    elif len(names) == clients:
        ids = names
    else:
        raise DataError(f"{len(names)} names for {clients} clients")
    reading = read_classes(classes)
    if reading is None:
        _regression(function, name)
        reading = REGRESSION
    count = None if reading == REGRESSION else reading if isinstance(reading, int) else len(reading)
    test_set = None if test is None else as_samples(*test, reading, f"{name}, test")[0]
    return Lazy(
        function, ids, classes=count, size=size, dataset=name, test_set=test_set, cache=cache, reading=reading
    )


def _regression(function: Callable[[int], Any], name: str) -> None:
    """Refuse a population whose first client does not show that it is a regression."""
    value, where = function(0), f"{name}, client 0"
    train = value.get("train") if isinstance(value, Mapping) else value
    if train is None:
        return  # what is wrong is said when the client is read
    targets = as_samples(*_pair(train, where), UNASKED, where)[0].targets
    if not targets.is_floating_point():
        raise DataError(
            f"{where}: the targets are whole numbers, such as {int(targets.reshape(-1)[0])}: classes or numbers?",
            hint=f'classes={int(targets.max()) + 1} for classes (as many as all clients have), classes="regression" for'
            " numbers",
        )
    ask([targets], where)
