"""Which settings do not belong to what a run computes, and the settings in which two runs must agree."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from atoll.errors import ConfigError, PausedError
from atoll.runs.events import Event

__all__ = ["AFTER_PAUSE", "FREE", "OPERATIONAL", "agree", "paused"]

_EXTENT = (
    "rounds",
    "target",
    "patience",
    "tokens",
    "eval_every",
    "eval_clients",
)  # how far it goes, and where it is looked at
_CONDUCT = ("workers", "ray_address", "checkpoint", "keep", "log")  # how it is carried out and written down

FREE = (*_EXTENT, *_CONDUCT)
"""Settings that do not change what a round computes, so that a run may go on with others."""

OPERATIONAL = frozenset({*_CONDUCT, "runs", "engine", "ray_gpus", "device", "seed"})
"""Settings that say where and how a run is carried out, not what is run: runs with others are one experiment."""


AFTER_PAUSE = ("devices", "deadline", "quorum", "over_select")
"""Settings of which a run that paused may have others: nobody was there, or too few answered in time, and so it would
be again."""


def paused(events: Iterable[Event], round: int | None = None) -> bool:
    """Whether a run paused after this round (None: whichever), or went on from there with other settings."""
    ends = [each for each in events if each["event"] in ("error", "resume")]
    return any(
        (each.get("exit_code") == PausedError.exit_code or each.get("changed"))
        and round in (None, each["round"])
        for each in ends
    )


def agree(
    here: Mapping[str, Any], there: Mapping[str, Any], where: str, free: Collection[str] = ()
) -> dict[str, Any]:
    """The settings that are others here than there, of those that are `free` to be, with what they are here.

    Raises ConfigError, with what differs, unless all else that decides a run's bits is the same. A run with `devices`
    goes on with some.
    """
    changed = [name for name in {**there, **here} if here.get(name) != there.get(name)]
    clocks = here.get("devices"), there.get("devices")
    differ = [name for name in changed if name not in free or (name == "devices" and None in clocks)]
    if differ:
        shown = "; ".join(
            f"{name} is {there.get(name)!r} there, {here.get(name)!r} here" for name in differ[:4]
        )
        extent = ", ".join((*_EXTENT, *free))
        raise ConfigError(
            f"this is not the run of {where}: {shown}",
            hint=f"resume with the run's own model, data and settings; {extent} may change",
        )
    return {name: here.get(name) for name in changed}
