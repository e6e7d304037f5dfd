"""Local steps that fit the time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from atoll.rounds.adapting.rule import Rule, Seen, Wish, fitting
from atoll.tensors import Record

__all__ = ["Deadline"]


@dataclass(frozen=True)
class Deadline(Rule):
    """As many local steps as the time leaves room for, at least one.   FedProx: Li et al., MLSys 2020, section 3

    The time is the round's deadline, or where it has none, the time in which `share` of those asked would have done
    all that is planned: the others do less, nobody is waited for, and nobody is left out.
    """

    share: float = 0.5
    name: ClassVar[str] = "deadline"
    clocked: ClassVar[bool] = True

    def plan(self, state: Record, seen: Seen) -> Wish:
        whole = np.sort(seen.fixed + seen.step * seen.steps)
        seconds = seen.deadline
        if not np.isfinite(seconds) and len(whole):
            seconds = float(whole[max(0, int(np.ceil(self.share * len(whole))) - 1)])
        return Wish({client: max(1, steps) for client, steps in fitting(seen, seconds).items()})
