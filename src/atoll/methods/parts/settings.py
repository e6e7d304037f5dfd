"""Checking the settings of a method."""

from __future__ import annotations

import dataclasses
from numbers import Integral, Real
from types import NoneType
from typing import Any, get_args

import numpy as np

from atoll.errors import ConfigError
from atoll.schema import accepted

__all__ = ["require", "typed"]

_PLAIN: dict[str, Any] = {
    "int": int,
    "float": float,
    "bool": bool,
    "str": str,
    "int | None": int | None,
    "float | None": float | None,
}
"""The kinds of settings that are checked, by how an annotation writes them."""

_ABSTRACT = {int: Integral, float: Real, str: str}


def typed(method: Any) -> None:
    """Raise ConfigError where a setting that is to be a number, a text, or true or false, is something else."""
    for each in dataclasses.fields(method):
        kind = _PLAIN.get(each.type if isinstance(each.type, str) else getattr(each.type, "__name__", ""))
        value = getattr(method, each.name)
        if kind is not None and not _is(value, kind):
            raise ConfigError(
                f"{type(method).__name__}: {each.name} cannot be {value!r:.60}",
                hint=f"{each.name} takes {accepted(each.name, kind)}",
            )


def _is(value: Any, kind: Any) -> bool:
    """Whether a value is of a kind; a whole number is a number too, and NumPy's are as good as Python's."""
    members = get_args(kind) or (kind,)
    if value is None:
        return NoneType in members
    if isinstance(value, (bool, np.bool_)):
        return bool in members
    return any(isinstance(value, _ABSTRACT[member]) for member in members if member in _ABSTRACT)


def require(method: Any, name: str, holds: bool, what: str) -> None:
    """Raise ConfigError, naming the method, the setting and its value, unless `holds`."""
    if not holds:
        raise ConfigError(f"{type(method).__name__}: {name} = {getattr(method, name)!r}, but it {what}")
