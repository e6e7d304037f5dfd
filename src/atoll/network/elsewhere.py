"""Data of a federation whose clients keep it: who has how many samples, of what form, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from atoll.codec.header import DTYPES
from atoll.data import FederatedData
from atoll.data.federated import SPLITS
from atoll.data.report import PartitionReport
from atoll.data.samples import IntArray, Samples
from atoll.errors import ConfigError, DataError
from atoll.network.wire import DataForm, Field
from atoll.parts import Inputs, Parts, tensors

__all__ = ["Elsewhere", "alike", "form_of"]

_CODES = {dtype: code for code, dtype in DTYPES.items()}


class Elsewhere(FederatedData):
    """The clients of a deployed federation, as its coordinator knows them.

    Args:
        places: how many clients there may be. Who comes gets the next number; places that nobody has taken have no
            samples.
        form: that of everybody's samples.
        name: what reports call the data.

    Places are `names`, which are those of nodes once they are there.
    """

    here: ClassVar[bool] = False

    def __init__(self, places: int, form: DataForm, name: str = "nodes") -> None:
        self.form = form
        self.names: list[str] = [f"place {at}" for at in range(places)]
        self.classes = form.classes
        self.dataset, self.partition = name, "by node"
        self._counts: dict[int, dict[str, int | None]] = {}

    def welcome(self, number: int, name: str, form: DataForm) -> None:
        """A node is there with its data.  Raises DataError where these are of another form than the others'."""
        problem = alike(self.form, form)
        if problem is not None:
            raise DataError(f"{name}: {problem}", hint="all nodes must read the same columns in the same way")
        self.names[number] = name
        self._counts[number] = {split: getattr(form, split) for split in SPLITS}
        self.version += 1

    @property
    def clients(self) -> list[int]:
        """Places that are taken, ascending."""
        return sorted(self._counts)

    @property
    def test_set(self) -> Samples | None:
        return None

    @property
    def listed(self) -> bool:
        return True

    def size(self, client: int) -> int:
        return self._counts.get(client, {}).get("train") or 0

    def held(self, client: int, split: str = "train") -> int | None:
        return self._counts.get(client, {}).get(split)

    def samples(self, client: int, split: str = "train") -> Samples | None:
        if split == "public":
            return self.public
        raise DataError(f"the samples of {self.names[client]} are with {self.names[client]}")

    def example(self) -> Samples:
        parts = [(each.name, _zeros(each)) for each in self.form.inputs]
        inputs: Inputs = parts[0][1]
        if self.form.named or len(parts) > 1:
            inputs = Parts(dict(parts) if self.form.named else [part for _, part in parts])
        return Samples(inputs, _zeros(self.form.targets))

    def choose(self, clients: Sequence[int] | IntArray) -> FederatedData:
        raise ConfigError("nodes cannot be divided further")

    def report(self, limit: int = 200) -> PartitionReport:
        here = self.clients
        sizes = np.array([self.size(k) for k in here], np.int64)
        ordered, n = np.sort(sizes), max(len(sizes), 1)
        total = max(int(sizes.sum()), 1)
        gini = (
            float((2 * np.arange(1, len(sizes) + 1) - n - 1) @ ordered / (n * total)) if len(sizes) else 0.0
        )
        names = [self.names[k] for k in here]
        return PartitionReport(
            self.dataset, self.partition, len(self), names, sizes, None, None, None, None, gini
        )


def form_of(data: FederatedData, client: int) -> DataForm:
    """What a node says of the data of its client."""
    example = data.example()
    inputs, parts = example.inputs, [("", example.inputs)]
    named = isinstance(inputs, Parts) and inputs.named
    if isinstance(inputs, Parts):
        parts = [(str(name), part) for name, part in inputs.items()]
    return DataForm(
        inputs=tuple(_field(name, part) for name, part in parts),
        targets=_field("", example.targets),
        classes=data.classes,
        train=data.size(client),
        validation=data.held(client, "validation"),
        test=data.held(client, "test"),
        named=named,
    )


def alike(due: DataForm, found: DataForm) -> str | None:
    """How samples of one form differ from those of another, or None."""
    if found.classes != due.classes:
        return f"it has {_classes(found)}, and the others have {_classes(due)}"
    if found.named != due.named or len(found.inputs) != len(due.inputs):
        return f"its inputs have {len(found.inputs)} parts, and the others' {len(due.inputs)}"
    for one, other in zip((*found.inputs, found.targets), (*due.inputs, due.targets), strict=True):
        if one != other:
            what = "targets" if other == due.targets else f"inputs {one.name}".strip()
            return f"its {what} are {one.dtype}{list(one.shape)}, and the others' {other.dtype}{list(other.shape)}"
    return None


def _classes(form: DataForm) -> str:
    return "a number to predict" if form.classes is None else f"{form.classes} classes"


def _field(name: str, part: Any) -> Field:
    first = tensors([part])[0]
    return Field(name=name, dtype=_CODES[first.dtype], shape=tuple(first.shape[1:]))


def _zeros(field: Field) -> Tensor:
    dtype = DTYPES.get(field.dtype)
    if dtype is None:
        raise DataError(f"there are no tensors of type {field.dtype!r}")
    return torch.zeros((1, *field.shape), dtype=dtype)
