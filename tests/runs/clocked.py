"""Small real runs on a virtual clock, made once: by a deadline, with late replies kept, asynchronous; and without."""

from __future__ import annotations

from functools import cache
from typing import Any

import atoll
from atoll.results import Run
from atoll.runs.events import Event

__all__ = ["KINDS", "events", "played", "rounds"]

KINDS: dict[str, dict[str, Any]] = {
    "deadline": {"devices": "lognormal:1.5 + failing:0.1", "deadline": "share:0.8"},
    "keep": {"devices": "lognormal:1.5 + failing:0.1", "deadline": 2.0, "late": "keep"},
    "buffered": {"devices": "lognormal:1.5", "pace": "buffered:5", "concurrency": 10},
    "plain": {},
}


MOVING = {"devices": "lognormal:1.5", "joins": "4@2s", "leaves": "6@5s"}
"""A further one, "moving", whose clients come and go."""


@cache
def played(kind: str) -> Run:
    """A run of one of the kinds, on digits."""
    data = atoll.data.load("digits").partition(atoll.data.Dirichlet(clients=20, alpha=0.3), seed=0)
    federation = atoll.Federation(
        atoll.models.mlp(64, 10), data, atoll.FedAvg(lr=0.1), rounds=15, cohort=8, engine="loop", seed=0,
        target="accuracy:0.999", **(MOVING if kind == "moving" else KINDS[kind]),
    )  # fmt: skip
    return federation.fit(progress=False)


def events(kind: str) -> list[Event]:
    """Its events, with the name of the kind."""
    first, *rest = played(kind).events()
    return [{**first, "run": kind}, *rest]


def rounds(kind: str) -> list[Event]:
    """Its rounds."""
    return [each for each in events(kind) if each["event"] == "round"]
