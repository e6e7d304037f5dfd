"""What a person says about the columns of a table, as Python has it or as text: names, categories, constants."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from atoll import spec
from atoll.errors import ConfigError

from .question import REGRESSION
from .table import Table, is_number

__all__ = ["Categories", "Classes", "Names", "Scale", "read_categories", "read_classes", "read_missing",
           "read_names", "read_scale"]  # fmt: skip

Names = str | Sequence[str]
Categories = str | Sequence[str] | Mapping[str, Sequence[Any]]
Classes = int | str | Sequence[Any] | None
Scale = str | Sequence[str] | Mapping[str, Any] | None
Missing = Literal["drop", "zero", "mark"]

_MISSING = ("drop", "zero", "mark")


def read_names(given: Names, what: str) -> list[str]:
    """Columns: a sequence, or text with commas or in brackets.

    >>> read_names("age, weight", "features"), read_names("['a,b']", "features")
    (['age', 'weight'], ['a,b'])
    """
    if not isinstance(given, str):
        return [str(each) for each in given]
    text = given.strip()
    if not text.startswith("["):
        return spec.items(text, f"{what} =")
    try:
        found = tomllib.loads(f"found = {text}")["found"]
    except tomllib.TOMLDecodeError as error:
        if "'" in text or '"' in text:
            raise ConfigError(
                f"{what} = {given!r} is no list ({error})", hint=f'write {what}="A,B"'
            ) from None
        return spec.items(text.strip("[]"), f"{what} =")  # a shell takes quotes away
    return [str(each) for each in found]


def read_categories(given: Categories, table: Table, text: Sequence[str]) -> dict[str, list[Any] | None]:
    """Column -> its values, or None where these are to be found. `text` are the columns that "text" stands for.

    As text: names with commas, each alone or as ``smoker:no|yes``.
    """
    if isinstance(given, Mapping):
        return {str(column): list(values) for column, values in given.items()}
    entries = read_names(given, "categorical")
    if entries == ["text"] and "text" not in table:
        return dict.fromkeys(text)
    found: dict[str, list[Any] | None] = {}
    for entry in entries:
        column, colon, values = entry.rpartition(":")
        known = entry in table or not colon
        found[entry if known else column.strip()] = (
            None if known else [each.strip() for each in values.split("|")]
        )
    return found


def read_classes(given: Any) -> Any:
    """How many classes (an int), their labels in order (a list), "regression", or what was given where it is no text.

    >>> read_classes("10"), read_classes("no,yes"), read_classes("regression")
    (10, ['no', 'yes'], 'regression')
    """
    if not isinstance(given, str) or given == REGRESSION:
        return given
    return int(given) if given.strip().isdecimal() else read_names(given, "classes")


def read_missing(given: str | None) -> str | None:
    """One of "drop", "zero", "mark", or None."""
    if given is not None and given not in _MISSING:
        raise ConfigError(f"missing cannot be {given!r}", hint=f"missing takes {', '.join(_MISSING)}")
    return given


def read_scale(given: Scale) -> dict[str, tuple[float, float]] | Literal["federated"]:
    """Column -> (middle, unit), by which a value becomes (value - middle) / unit; or "federated".

    >>> read_scale("age:50:15, pressure:100")
    {'age': (50.0, 15.0), 'pressure': (0.0, 100.0)}
    """
    hint = "write scale=COLUMN:MIDDLE:UNIT,COLUMN:UNIT for (value - MIDDLE) / UNIT, or scale=federated"
    found: dict[str, tuple[float, float]] = {}
    if isinstance(given, Mapping):
        entries = [
            (str(column), pair if isinstance(pair, Sequence) else (pair,)) for column, pair in given.items()
        ]
    else:
        texts = read_names(given or (), "scale")
        if texts == ["federated"]:
            return "federated"
        entries = [_constants(entry) for entry in texts]
    for column, constants in entries:
        try:
            numbers = [float(each) for each in constants]
        except (TypeError, ValueError):
            numbers = []
        if not column or len(numbers) not in (1, 2) or numbers[-1] == 0 or any(n - n != 0 for n in numbers):
            raise ConfigError(f"scale: {column or given!r} has no constants to scale by", hint=hint)
        found[column] = (numbers[0], numbers[1]) if len(numbers) == 2 else (0.0, numbers[0])
    return found


def _constants(entry: str) -> tuple[str, list[str]]:
    """A column and the one or two numbers that follow it."""
    parts = [part.strip() for part in entry.split(":")]
    numbers: list[str] = []
    while len(parts) > 1 and len(numbers) < 2 and is_number(parts[-1]):
        numbers.insert(0, parts.pop())
    return ":".join(parts), numbers
