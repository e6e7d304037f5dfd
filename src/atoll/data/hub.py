"""Hugging Face datasets, told by their shape: the package is never imported here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from atoll.errors import DataError, suggest

from .arrays import from_arrays
from .dataset import Dataset
from .question import UNASKED
from .samples import Pad
from .wishes import Classes

__all__ = ["from_hf", "is_hf"]


def is_hf(value: Any) -> bool:
    """A `datasets.Dataset` or `DatasetDict`, or anything that walks like one."""
    return hasattr(value, "with_format") and hasattr(value, "column_names")


def from_hf(
    dataset: Any,
    label: str = "label",
    inputs: str | Sequence[str] | None = None,
    client: str | None = None,
    *,
    split: str = "train",
    test: str | None = "test",
    classes: Classes = None,
    name: str | None = None,
    pad: Pad = None,
) -> Dataset:
    """A dataset from a Hugging Face `Dataset` or `DatasetDict`.

    Args:
        dataset: one split, or a dictionary of splits.
        label: the column to predict; a class label's number of classes is taken from the features.
        inputs: one column (pictures, arrays, token lists), or several: columns of numbers become one row each, columns
            of lists (``["input_ids", "attention_mask"]``) are parts that the model gets by name. By default the only
            column that is neither `label` nor `client`.
        client: the column that says which client a row belongs to.
        split, test: which splits of a dictionary to train and to test on; a test split that is absent is
        ignored. classes, name, pad: as in `from_arrays`.
    """
    held = None
    if isinstance(dataset, Mapping):
        if split not in dataset:
            raise DataError(f"there is no split {split!r}", hint=suggest(split, map(str, dataset)))
        held = dataset[test] if test is not None and test in dataset else None
        dataset = dataset[split]
    title = (
        name
        if name is not None
        else str(getattr(getattr(dataset, "info", None), "dataset_name", None) or "hf")
    )
    known = list(dataset.column_names)
    others = [column for column in known if column not in (label, client)]
    if inputs is None:
        if len(others) != 1:
            raise DataError(
                f"{title}: which columns are the inputs? There are {', '.join(others) or 'none'}",
                hint='pass inputs="COLUMN" or inputs=["A", "B"]',
            )
        inputs = others[0]
    wanted = [inputs] if isinstance(inputs, str) else list(inputs)
    for column in [label, *wanted, *([client] if client is not None else [])]:
        if column not in known:
            raise DataError(f"{title}: there is no column {column!r}", hint=suggest(column, known))
    if classes is None or classes is UNASKED:
        feature = (getattr(dataset, "features", None) or {}).get(label)
        classes = getattr(feature, "num_classes", classes)
    x, y = _read(dataset, inputs, label)
    columns = {} if client is None else {client: np.asarray(list(dataset[client]))}
    test_pair = None if held is None else _read(held, inputs, label)
    return from_arrays(x, y, test_pair, classes, columns, natural=client, name=title, pad=pad)


def _read(dataset: Any, inputs: str | Sequence[str], label: str) -> tuple[Any, Any]:
    plain = dataset.with_format(None)
    if isinstance(inputs, str):
        x: Any = list(plain[inputs])
    elif all(np.ndim(plain[column][0]) for column in inputs):
        x = {column: list(plain[column]) for column in inputs}
    else:
        x = np.stack([np.asarray(list(plain[column]), dtype=np.float32) for column in inputs], axis=1)
    return x, list(plain[label])
