"""Who takes part in a round: drawn by the seed, with fewer epochs for those that are slow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from atoll import seeds
from atoll.contract import Method, Plan
from atoll.data import FederatedData
from atoll.errors import ConfigError
from atoll.rounds.membership import Membership

__all__ = ["Cohort", "Cohorts"]


@dataclass(frozen=True)
class Cohort:
    """Who takes part in a round.

    `clients` are asked (sorted); `epochs` are the local epochs of those that manage fewer than planned; `dropped` were
    drawn, but are slower than the method accepts; `gone` were there in the round before and have left.
    """

    clients: list[int]
    epochs: Mapping[int, int] = field(default_factory=dict)
    dropped: list[int] = field(default_factory=list)
    gone: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Cohorts:
    """Draws the cohort of every round: a function of the seed and the round.

    Args:
        size: clients a round, as far as so many are there.
        stragglers: share of every cohort that is slow and manages only some of its local epochs, drawn uniformly;
            methods without `partial_work` drop these clients.
    """

    data: FederatedData
    method: Method
    membership: Membership
    seed: int
    size: int
    stragglers: float = 0.0

    def enlist(self, number: int) -> Cohort:
        """The cohort of a round.  Raises ConfigError for stragglers where the method counts steps."""
        present: Any = self.membership.present(number)
        gone = self.membership.leaving(number)
        count = min(self.size, present if isinstance(present, int) else len(present))
        chosen = seeds.rng(self.seed, "cohort", number).choice(present, count, replace=False)
        clients = sorted(int(k) for k in chosen)
        if not self.stragglers:
            return Cohort([k for k in clients if self.data.size(k) > 0], gone=gone)
        plan: Plan = self.method.plan()
        if plan.steps is not None or plan.epochs < 1:
            raise ConfigError("stragglers do fewer local epochs, but this method is set to local steps")
        rng = seeds.rng(self.seed, "stragglers", number)
        slow = sorted(
            int(k) for k in rng.choice(clients, round(self.stragglers * len(clients)), replace=False)
        )
        if not getattr(self.method, "partial_work", False):
            return Cohort([k for k in clients if k not in slow], dropped=slow, gone=gone)
        done = rng.integers(1, max(plan.epochs, 2), len(slow))
        return Cohort(clients, {k: int(e) for k, e in zip(slow, done, strict=True)}, gone=gone)
