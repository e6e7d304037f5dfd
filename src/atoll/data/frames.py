"""A person's own tables: pandas and polars frames, or plain mappings of columns."""

from __future__ import annotations

from typing import Any

from .dataset import Dataset
from .encoding import encode
from .table import Table
from .wishes import Categories, Classes, Names, Scale

__all__ = ["from_frame"]


def from_frame(
    frame: Any,
    label: str | None = None,
    features: Names | None = None,
    client: str | None = None,
    *,
    categorical: Categories = (),
    classes: Classes = None,
    missing: str | None = None,
    scale: Scale = None,
    test: Any = None,
    name: str = "frame",
    ignore: int | None = None,
) -> Dataset:
    """A dataset from a pandas or polars frame; inputs are float32 of shape (rows, features).

    Args:
        frame: the table; a mapping of equally long columns works too.
        label: the column to predict. Labels that are text are classes, in the order of their letters.
        features: the columns to predict from; by default all but `label` and `client`.
        client: the column that says which client a row belongs to; it becomes the natural column.
        categorical: columns to encode one-hot, by their sorted values, or by ``{column: values}`` (as text,
            ``"sex, smoker:no|yes"``); "text" are all columns of text. Fix the values where clients encode their
            tables apart from each other.
        classes: as in `from_arrays`.
        missing: what becomes of gaps. "drop" leaves their rows out; "zero" puts 0 in their place, after scaling, and
            no category; "mark" does that and adds a column that is 1 where there was a gap.
        scale: ``{column: (middle, unit)}``, or ``{column: unit}``: constants by which numbers become
            (value - middle) / unit (as text, ``"age:50:15, weight:100"``). "federated" takes mean and deviation over
            the clients' training rows, in one round of sums, when the data is divided among them.
        test: an official test table with the same columns.
        name: what reports call the data.
        ignore: rows with this label, a number, are left out, as in `from_arrays`.

    Raises `DataError` that names the column and counts the rows for gaps and for text in a feature.
    """
    pair = Table.of(frame, name), None if test is None else Table.of(test, f"{name}, test")
    return encode({name: pair}, label, client, features, categorical, classes, missing, scale, ignore)[name]
