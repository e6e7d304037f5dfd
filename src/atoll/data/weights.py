"""What clients count for where a server averages, as a person says it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from atoll.errors import ConfigError, suggest

from .table import is_number
from .wishes import read_names

__all__ = ["FloatArray", "Weights", "read_weights", "scaled", "weight", "weights_of"]

FloatArray = NDArray[np.float64]
Weights = Literal["equal"] | str | Sequence[float] | Sequence[str] | Mapping[str, float]

_HINT = 'write weights="equal", weights="NAME:2,NAME:0.5", or one number per client'


def read_weights(given: Weights) -> Literal["equal"] | list[Any] | dict[str, Any]:
    """What was given, as "equal", one value per client, or name -> value; what the values are is not looked at.

    >>> read_weights("site a: 2, site b: 0.5"), read_weights("1, 2, 1"), read_weights("equal")
    ({'site a': '2', 'site b': '0.5'}, ['1', '2', '1'], 'equal')
    """
    if isinstance(given, Mapping):
        return {str(name): value for name, value in given.items()}
    if not isinstance(given, str) and not any(isinstance(each, str) for each in given):
        return list(given)
    entries = read_names(given, "weights")  # type: ignore[arg-type]
    if entries == ["equal"]:
        return "equal"
    if all(is_number(entry) for entry in entries):
        return list(entries)
    found: dict[str, Any] = {}
    for entry in entries:
        name, colon, value = (part.strip() for part in entry.rpartition(":"))
        if not colon or not name or not value:
            raise ConfigError(f"weights: {entry!r} is not NAME:WEIGHT", hint=_HINT)
        if name in found:
            raise ConfigError(f"weights: {name!r} has two weights", hint="give each client one")
        found[name] = value
    return found


def weights_of(names: Sequence[str], given: Weights) -> FloatArray:
    """One weight per client [n], with the mean 1; those that a mapping does not name count for 1 before that.

    Raises ConfigError for an unknown name, another number of weights than clients, a weight that is negative or no
    finite number, and weights that are all 0.
    """
    found = read_weights(given)
    if found == "equal":
        return np.broadcast_to(np.float64(1), (len(names),))
    if isinstance(found, dict):
        where = {name: at for at, name in enumerate(map(str, names)) if name in found}
        for name in found:
            if name not in where:
                known = [str(names[at]) for at in range(min(len(names), 1000))]
                raise ConfigError(f"weights: there is no client {name!r}", hint=suggest(name, known))
        weights = np.ones(len(names))
        for name, value in found.items():
            weights[where[name]] = weight(value, f"client {name!r}")
        return scaled(weights)
    assert isinstance(found, list)
    if len(found) != len(names):
        raise ConfigError(
            f"there are {len(found):,} weights for {len(names):,} clients",
            hint="give one number per client, or name the clients that count for more or less",
        )
    return scaled(np.array([weight(value, f"client {str(names[at])!r}") for at, value in enumerate(found)]))


def scaled(weights: FloatArray) -> FloatArray:
    """Weights with the mean 1.  Raises ConfigError where all of them are 0."""
    mean = float(weights.mean())
    if mean == 0:
        raise ConfigError("the weights of all clients are 0", hint="a mean needs a client that counts")
    return weights if mean == 1 else weights / mean


def weight(value: Any, who: str) -> float:
    """A weight as a number.  Raises ConfigError, which names whose it is."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = np.nan
    if not 0 <= found < np.inf:
        raise ConfigError(f"the weight of {who} is {value}", hint="weights are numbers from 0 up")
    return found
