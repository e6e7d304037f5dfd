"""Which settings do not belong to what a run computes, and the settings in which two runs must agree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atoll.errors import ConfigError

__all__ = ["FREE", "OPERATIONAL", "agree"]

_EXTENT = (
    "rounds",
    "target",
    "patience",
    "eval_every",
    "eval_clients",
)  # how far it goes, and where it is looked at
_CONDUCT = ("workers", "checkpoint", "keep", "log")  # how it is carried out and written down

FREE = (*_EXTENT, *_CONDUCT)
"""Settings that do not change what a round computes, so that a run may go on with others."""

OPERATIONAL = frozenset({*_CONDUCT, "runs", "engine", "device", "seed"})
"""Settings that say where and how a run is carried out, not what is run: runs with others are one experiment."""


def agree(here: Mapping[str, Any], there: Mapping[str, Any], where: str) -> None:
    """Raise ConfigError, with what differs, unless what decides a run's bits is the same here as there."""
    differ = [name for name in {**there, **here} if here.get(name) != there.get(name)]
    if differ:
        shown = "; ".join(
            f"{name} is {there.get(name)!r} there, {here.get(name)!r} here" for name in differ[:4]
        )
        free = ", ".join(_EXTENT)
        raise ConfigError(
            f"this is not the run of {where}: {shown}",
            hint=f"resume with the run's own model, data and settings; {free} may change",
        )
