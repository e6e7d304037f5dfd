"""A person's own data: arrays, tensors and PyTorch datasets."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils import data as torch_data

from atoll.errors import DataError

from .dataset import Dataset
from .question import UNASKED, ask
from .samples import Samples, _tensor, as_samples, concatenate
from .table import collected, is_frame
from .wishes import Classes, read_classes

__all__ = ["from_arrays", "from_tensors", "from_torch"]


def from_arrays(
    x: Any,
    y: Any,
    test: tuple[Any, Any] | None = None,
    classes: Classes = None,
    columns: Mapping[str, Any] | None = None,
    *,
    natural: str | None = None,
    name: str = "arrays",
    ignore: int | None = None,
) -> Dataset:
    """A dataset from arrays, tensors, sparse matrices or lists, first dimension = samples.

    Args:
        x, y: inputs and targets. Floating inputs become float32, whole numbers stay whole (tokens); nothing
            is rescaled. A data frame is read as its values. Whole-number targets are classes, floating ones a
            regression unless `classes` is given.
        test: (x, y) of an official test split.
        classes: how many, or the labels in order (text labels need this), or "regression"; found from the targets
            otherwise, and asked for where they leave it open: whole numbers in a floating type, labels with gaps.
        columns: properties of the training rows, such as ``{"hospital": [...]}``.
        natural: the column that says which client a row belongs to.
        name: what reports call the data.
        ignore: the label that marks targets which do not count, such as 255 in a segmentation: they are neither
            trained on nor judged. A sample without any other is left out.

    Raises `DataError` for NaN, lengths that differ, and labels out of range, naming the rows.
    """
    x = collected(x) if is_frame(x) else x
    unasked, classes = classes is UNASKED, read_classes(classes)
    train, found, kept = _counting(x, y, classes, f"{name}, train", ignore)
    if columns is not None and kept is not None:
        columns = {key: np.asarray(values)[kept] for key, values in columns.items()}
    held = None
    if test is not None:
        held, found_test, _ = _counting(test[0], test[1], classes, f"{name}, test", ignore)
        if (found is None) != (found_test is None):
            raise DataError(
                f"{name}: of training and test targets, one is whole numbers and the other is not",
                hint="give both the same type, or say how many with classes=10",
            )
        if found is not None and found_test is not None:
            found = max(found, found_test)
    if classes is None:
        ask([part.targets for part in (train, held) if part is not None], name)
    made = Dataset(name, train, held, classes=found, columns=columns, natural=natural)
    made.open, made.features = unasked, tuple(map(str, x.columns)) if is_frame(x) else None
    return made


from_tensors = from_arrays


def _counting(
    x: Any, y: Any, classes: Classes, where: str, ignore: int | None
) -> tuple[Samples, int | None, np.ndarray[Any, np.dtype[np.bool_]] | None]:
    """Samples, classes, and which rows are among them (None: all). Of targets that do not count the label is -1."""
    if ignore is None:
        return *as_samples(x, y, classes, where), None
    if isinstance(classes, Sequence):
        raise DataError(
            f"{where}: ignore is a number among labels that are numbers, and classes lists labels",
            hint="give classes as a number, or leave out the samples without a label",
        )
    inputs, targets = _tensor(x, "inputs", where), _tensor(y, "targets", where)
    if targets.dim() == 0 or len(inputs) != len(targets):
        return *as_samples(inputs, targets, classes, where), None  # which says what is wrong
    marked = targets == ignore
    kept = ~marked.reshape(len(marked), -1).all(1)
    if not bool(kept.any()):
        raise DataError(
            f"{where}: all targets are {ignore}, which is to be ignored", hint="is it the right label?"
        )
    marked = marked[kept]
    samples, found = as_samples(inputs[kept], targets[kept].masked_fill(marked, 0), classes, where)
    samples.targets[marked] = -1
    return samples, found, kept.numpy()


def from_torch(
    dataset: Any,
    test: Any = None,
    *,
    keys: tuple[str, str] | None = None,
    classes: Classes = None,
    columns: Mapping[str, Any] | None = None,
    natural: str | None = None,
    name: str | None = None,
    ignore: int | None = None,
) -> Dataset:
    """A dataset from a map-style PyTorch dataset, or from the dataset of a `DataLoader`.

    Every item is read once. Items are (x, y) tuples, or mappings or objects whose fields `keys` names (for
    instance ``("img", "label")``); a dataclass or mapping of exactly two fields needs no keys. Tensor
    datasets, and subsets and concatenations of them, are taken whole. `test` is another such dataset; the
    rest is as in `from_arrays`.

    Raises `DataError` for iterable datasets, items of another form, and bad values.
    """
    title = name if name is not None else type(_plain(dataset)).__name__
    x, y = _collect(dataset, keys, f"{title}, train")
    held = None if test is None else _collect(test, keys, f"{title}, test")
    return from_arrays(x, y, held, classes, columns, natural=natural, name=title, ignore=ignore)


def _plain(dataset: Any) -> Any:
    return dataset.dataset if isinstance(dataset, torch_data.DataLoader) else dataset


def _collect(dataset: Any, keys: tuple[str, str] | None, where: str) -> tuple[Any, Any]:
    dataset = _plain(dataset)
    if isinstance(dataset, torch_data.IterableDataset) or not (
        hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    ):
        raise DataError(
            f"{where}: {type(dataset).__name__} has no length or cannot be indexed",
            hint="read it into a list of (x, y) pairs first, or describe clients with from_function",
        )
    whole = _tensors(dataset)
    if whole is not None:
        return whole
    if len(dataset) == 0:
        raise DataError(f"{where}: there are no samples")
    pairs = [_pair(dataset[index], keys, f"{where}, item {index}") for index in range(len(dataset))]
    return [x for x, _ in pairs], _targets([y for _, y in pairs])


def _targets(values: list[Any]) -> Any:
    if isinstance(values[0], torch.Tensor) and values[0].dim() == 0:
        return torch.stack(values)
    return values


def _tensors(dataset: Any) -> tuple[Any, Any] | None:
    """The stored tensors of a dataset that is nothing but tensors."""
    kind = type(dataset)
    if kind is torch_data.TensorDataset and len(dataset.tensors) == 2:
        return dataset.tensors[0], dataset.tensors[1]
    if kind is torch_data.Subset:
        whole = _tensors(dataset.dataset)
        if whole is None:
            return None
        chosen = Samples(whole[0], whole[1]).take(np.asarray(dataset.indices, dtype=np.int64))
        return chosen.inputs, chosen.targets
    if kind is torch_data.ConcatDataset:
        parts = [_tensors(part) for part in dataset.datasets]
        present = [Samples(*part) for part in parts if part is not None]
        if len(present) == len(parts):
            joined = concatenate(present)
            return joined.inputs, joined.targets
    return None


def _pair(item: Any, keys: tuple[str, str] | None, where: str) -> tuple[Any, Any]:
    if isinstance(item, Mapping):
        fields = dict(item)
    elif dataclasses.is_dataclass(item) and not isinstance(item, type):
        fields = {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}
    elif keys is None and isinstance(item, (tuple, list)):
        if len(item) != 2:
            raise DataError(
                f"{where} has {len(item)} parts, not (x, y)",
                hint='name two fields with keys=("img", "label")',
            )
        return item[0], item[1]
    else:
        fields = {key: getattr(item, key) for key in keys or () if hasattr(item, key)}
    if keys is None:
        if len(fields) == 2:
            first, second = fields.values()
            return first, second
        keys = ("x", "y")
    absent = [key for key in keys if key not in fields]
    if absent:
        found = ", ".join(map(str, fields)) or type(item).__name__
        raise DataError(
            f"{where} has no field {absent[0]!r} (it has: {found})",
            hint='name both with keys=("img", "label")',
        )
    return fields[keys[0]], fields[keys[1]]
