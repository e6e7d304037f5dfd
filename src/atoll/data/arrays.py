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
from .samples import Pad, Samples, _tensor, as_samples, levelled, read_inputs
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
    pad: Pad = None,
) -> Dataset:
    """A dataset from arrays, tensors, sparse matrices or lists, first dimension = samples.

    Args:
        x, y: inputs and targets. Floating inputs become float32, whole numbers stay whole (tokens); nothing
            is rescaled. A data frame is read as its values. A mapping of arrays, or a tuple of arrays, are inputs of
            several parts: arguments of the model by name or by position (see `atoll.calling.arguments`). Whole-number
            targets are classes, floating ones a regression unless `classes` is given.
        test: (x, y) of an official test split.
        classes: how many, or the labels in order (text labels need this), or "regression"; found from the targets
            otherwise, and asked for where they leave it open: whole numbers in a floating type, labels with gaps.
        columns: properties of the training rows, such as ``{"hospital": [...]}``.
        natural: the column that says which client a row belongs to.
        name: what reports call the data.
        ignore: the label that marks targets which do not count, such as 255 in a segmentation: they are neither
            trained on nor judged. A sample without any other is left out.
        pad: fills up samples of different shapes (sequences, graphs) at their ends; a number that means nothing, or one
            for each part of the inputs that needs it, by name. Targets are filled up with labels that do not count.

    Raises `DataError` for NaN, lengths that differ, and labels out of range, naming the rows.
    """
    x = collected(x) if is_frame(x) else x
    unasked, classes = classes is UNASKED, read_classes(classes)
    train, found, kept = _counting(x, y, classes, f"{name}, train", ignore, pad)
    if columns is not None and kept is not None:
        columns = {key: np.asarray(values)[kept] for key, values in columns.items()}
    held = None
    if test is not None:
        held, found_test, _ = _counting(test[0], test[1], classes, f"{name}, test", ignore, pad)
        train, held = levelled([train, held], pad)
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
    x: Any, y: Any, classes: Classes, where: str, ignore: int | None, pad: Pad
) -> tuple[Samples, int | None, np.ndarray[Any, np.dtype[np.bool_]] | None]:
    """Samples, classes, and which rows are among them (None: all). Of targets that do not count the label is -1."""
    y, ragged = _even(y, pad, -1 if ignore is None else ignore, where)
    if ragged and ignore is None:
        ignore = -1
    if ignore is None:
        return *as_samples(x, y, classes, where, pad), None
    if isinstance(classes, Sequence):
        raise DataError(
            f"{where}: ignore is a number among labels that are numbers, and classes lists labels",
            hint="give classes as a number, or leave out the samples without a label",
        )
    targets = _tensor(y, "targets", where)
    length = len(targets) if targets.dim() else None
    inputs = read_inputs(x, where, length, pad)
    if targets.dim() == 0 or len(inputs) != length:
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


def _even(y: Any, pad: Pad, label: int, where: str) -> tuple[Any, bool]:
    """Targets of one shape: shorter ones are filled up with a label that does not count, and whether any were."""
    if pad is None or not isinstance(y, (list, tuple)):
        return y, False
    lengths = {np.shape(each)[:1] for each in y}
    if len(lengths) < 2:
        return y, False
    return _tensor(list(y), "targets", where, label), True


Key = str | int
Keys = tuple[Key | Sequence[Key], Key]
"""Which fields of an item are its inputs, one or several, and which its target."""


def from_torch(
    dataset: Any,
    test: Any = None,
    *,
    keys: Keys | None = None,
    classes: Classes = None,
    columns: Mapping[str, Any] | None = None,
    natural: str | None = None,
    name: str | None = None,
    ignore: int | None = None,
    pad: Pad = None,
) -> Dataset:
    """A dataset from a map-style PyTorch dataset, or from the dataset of a `DataLoader`.

    Every item is read once. Items are (x, y) pairs, where x may be a mapping or tuple of several parts. Of items with
    more fields `keys` names the inputs and the target: ``("img", "label")``, or by position in a tuple, ``(0, 1)``; for
    inputs of several parts ``(("input_ids", "attention_mask"), "labels")``. A loader with a `collate_fn` of its own
    puts the items together (it fills up sequences, say), all at once. Tensor datasets, and subsets and concatenations
    of them, are taken whole. `test` is another such dataset; the rest is as in `from_arrays`.

    Raises `DataError` for iterable datasets, items of another form, and bad values.
    """
    title = name if name is not None else type(_plain(dataset)).__name__
    x, y = _collect(dataset, keys, f"{title}, train")
    held = None if test is None else _collect(test, keys, f"{title}, test")
    return from_arrays(x, y, held, classes, columns, natural=natural, name=title, ignore=ignore, pad=pad)


def _plain(dataset: Any) -> Any:
    return dataset.dataset if isinstance(dataset, torch_data.DataLoader) else dataset


def _collect(dataset: Any, keys: Keys | None, where: str) -> tuple[Any, Any]:
    loader, dataset = dataset, _plain(dataset)
    if isinstance(dataset, torch_data.IterableDataset) or not (
        hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    ):
        raise DataError(
            f"{where}: {type(dataset).__name__} has no length or cannot be indexed",
            hint="read it into a list of (x, y) pairs first, or describe clients with from_function",
        )
    whole = _tensors(dataset)
    if whole is not None:
        return _chosen(dict(enumerate(whole)), keys, where)
    if len(dataset) == 0:
        raise DataError(f"{where}: there are no samples")
    items = [dataset[index] for index in range(len(dataset))]
    if isinstance(loader, torch_data.DataLoader) and loader.collate_fn is not torch_data.default_collate:
        return _chosen(_fields(loader.collate_fn(items), keys), keys, f"{where}, what collate_fn makes")
    pairs = [_chosen(_fields(item, keys), keys, f"{where}, item {index}") for index, item in enumerate(items)]
    return _side_by_side([x for x, _ in pairs]), _targets([y for _, y in pairs])


def _side_by_side(inputs: list[Any]) -> Any:
    """Inputs of samples; those of several parts part by part."""
    first = inputs[0]
    if isinstance(first, Mapping):
        return {name: [each[name] for each in inputs] for name in first}
    if isinstance(first, tuple):
        return tuple([each[at] for each in inputs] for at in range(len(first)))
    return inputs


def _targets(values: list[Any]) -> Any:
    if isinstance(values[0], torch.Tensor) and values[0].dim() == 0:
        return torch.stack(values)
    return values


def _tensors(dataset: Any) -> tuple[torch.Tensor, ...] | None:
    """The stored tensors of a dataset that is nothing but tensors."""
    kind = type(dataset)
    if kind is torch_data.TensorDataset and len(dataset.tensors) > 1:
        return tuple(dataset.tensors)
    if kind is torch_data.Subset:
        whole = _tensors(dataset.dataset)
        rows = torch.from_numpy(np.asarray(dataset.indices, dtype=np.int64))
        return None if whole is None else tuple(part[rows] for part in whole)
    if kind is torch_data.ConcatDataset:
        parts = [_tensors(part) for part in dataset.datasets]
        present = [part for part in parts if part is not None]
        if len(present) == len(parts) and len({*map(len, present)}) == 1:
            return tuple(torch.cat(column) for column in zip(*present, strict=True))
    return None


def _fields(item: Any, keys: Keys | None) -> dict[Key, Any]:
    """The fields of an item by name, or by position; of other objects those that `keys` names."""
    if isinstance(item, Mapping):
        return dict(item)
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        return {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}
    if isinstance(item, (tuple, list)):
        names = getattr(item, "_fields", ()) if keys is not None else ()
        return {**dict(enumerate(item)), **dict(zip(names, item, strict=bool(names)))}
    return {key: getattr(item, key) for key in _flat(keys) if isinstance(key, str) and hasattr(item, key)}


def _flat(keys: Keys | None) -> list[Key]:
    if keys is None:
        return []
    inputs, target = keys
    return [*([inputs] if isinstance(inputs, (str, int)) else inputs), target]


def _chosen(fields: Mapping[Key, Any], keys: Keys | None, where: str) -> tuple[Any, Any]:
    """Inputs and target among the fields of an item. Several inputs become a mapping, or a tuple by position."""
    if keys is None:
        if len(fields) == 2:
            first, second = fields.values()
            return first, second
        keys = ("x", "y")
        if not {"x", "y"} <= fields.keys():
            raise _unclear(fields, where)
    absent = [key for key in _flat(keys) if key not in fields]
    if absent:
        found = ", ".join(map(str, fields)) or "none"
        raise DataError(f"{where} has no field {absent[0]!r} (it has: {found})", hint=_such(fields))
    inputs, target = keys
    if isinstance(inputs, (str, int)):
        return fields[inputs], fields[target]
    if all(isinstance(key, int) for key in inputs):
        return tuple(fields[key] for key in inputs), fields[target]
    return {str(key): fields[key] for key in inputs}, fields[target]


def _unclear(fields: Mapping[Key, Any], where: str) -> DataError:
    what = ", ".join(map(str, fields)) or "none that can be told"
    kind = "parts" if all(isinstance(key, int) for key in fields) else "fields"
    return DataError(
        f"{where} has {len(fields)} {kind} ({what}): which are the inputs, and which is the target?",
        hint=_such(fields),
    )


def _such(fields: Mapping[Key, Any]) -> str:
    """How `keys` could be written for an item of these fields."""
    known = list(fields)
    if len(known) < 2:
        return 'name both with keys=("img", "label")'
    likely = [key for key in known if str(key).lower() in ("y", "label", "labels", "target", "targets")]
    target = likely[0] if likely else known[1] if isinstance(known[0], int) else known[-1]
    inputs = [key for key in known if key != target]
    one, all_of_them = (inputs[0], target), (tuple(inputs), target)
    several = f", or for inputs of several parts keys={all_of_them!r}" if len(inputs) > 1 else ""
    return f"name both: keys={one!r}{several}"
