"""What a round cost in privacy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Spent"]


@dataclass(frozen=True)
class Spent:
    """Privacy after a round.

    `epsilon` is at most what all rounds so far have spent at `delta`; of the `level` "user" (all that one client has)
    or "record" (a single sample). `noise` is the deviation of the noise on the round's sum over the bound on one
    contribution, `clipped` the share of updates that were shortened (for a simulation's eyes). `private` is False
    where noise followed from a seed that others may know: then nothing is promised.
    Where clients and their samples are hidden (`dp_sgd` beside the noise of a channel), `samples_epsilon` and
    `samples_delta` are about single samples.
    """

    level: str
    epsilon: float
    delta: float
    noise: float
    private: bool
    clipped: float | None = None
    samples_epsilon: float | None = None
    samples_delta: float | None = None

    @staticmethod
    def of_event(found: Mapping[str, Any]) -> Spent:
        """As an event has it, where no bound at all is null."""
        epsilon = math.inf if found["epsilon"] is None else found["epsilon"]
        return Spent(**{**found, "epsilon": epsilon})
