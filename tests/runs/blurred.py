"""Small real runs that spend privacy, made once: noise that is secret and one that is not; and without any noise."""

from __future__ import annotations

from functools import cache
from typing import Any

import atoll
from atoll.results import Run
from atoll.runs.events import Event

__all__ = ["KINDS", "events", "played", "rounds"]

KINDS: dict[str, dict[str, Any]] = {
    "private": {"channel": "clip:0.25 | noise:2.0", "epsilon": 2.5, "delta": 1e-3},
    "seeded": {"channel": "clip:0.25 | noise:1.0,7", "delta": 1e-3},
    "hidden": {"channel": "secagg"},
    "plain": {},
}


@cache
def played(kind: str) -> Run:
    """A run of one of the kinds, on digits."""
    data = atoll.data.load("digits").partition(atoll.data.IID(clients=40), seed=0)
    federation = atoll.Federation(
        lambda: atoll.models.mlp(64, 10), data, atoll.FedAvg(lr=0.3), rounds=8, cohort=10, engine="loop", seed=0,
        device="cpu", **KINDS[kind],
    )  # fmt: skip
    return federation.fit(progress=False)


def events(kind: str) -> list[Event]:
    """Its events, with the name of the kind."""
    first, *rest = played(kind).events()
    return [{**first, "run": kind}, *rest]


def rounds(kind: str) -> list[Event]:
    """Its rounds."""
    return [each for each in events(kind) if each["event"] == "round"]
