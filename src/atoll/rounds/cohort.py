"""Who takes part in a round: chosen among those who are there, with fewer epochs for those that are slow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from atoll import seeds
from atoll.contract import Method, Plan
from atoll.data import FederatedData
from atoll.errors import ConfigError
from atoll.rounds.choosing import Ask, Choice
from atoll.rounds.membership import Membership
from atoll.tensors import Record

__all__ = ["Cohort", "Cohorts"]

Clients = NDArray[np.int64]


@dataclass(frozen=True)
class Cohort:
    """Who takes part in a round.

    `clients` are asked (sorted); `epochs` are the local epochs of those that manage fewer than planned; `dropped` were
    drawn, but are slower than the method accepts; `gone` were there in the round before and have left. `factors` are
    what clients' changes are multiplied by, all counting the same, where the choice asks for it.
    """

    clients: list[int]
    epochs: Mapping[int, int] = field(default_factory=dict)
    dropped: list[int] = field(default_factory=list)
    gone: list[int] = field(default_factory=list)
    factors: Mapping[int, float] | None = None


def everybody(clients: Clients) -> NDArray[np.bool_]:
    """All of them are there."""
    return np.ones(len(clients), np.bool_)


def at_once(clients: Clients) -> NDArray[np.float64]:
    """Nobody takes any time."""
    return np.zeros(len(clients))


@dataclass(frozen=True)
class Cohorts:
    """Draws the cohort of every round: a function of the seed, the round, and what the choice has learned.

    Args:
        size: clients a round, as far as so many are there.
        choice: who is asked.
        stragglers: share of every cohort that is slow and manages only some of its local epochs, drawn uniformly;
            methods without `partial_work` drop these clients.
    """

    data: FederatedData
    method: Method
    membership: Membership
    seed: int
    size: int
    choice: Choice
    stragglers: float = 0.0

    def enlist(
        self,
        number: int,
        state: Record,
        *,
        there: Callable[[Clients], NDArray[np.bool_]] = everybody,
        seconds: Callable[[Clients], NDArray[np.float64]] = at_once,
        count: int | None = None,
        nth: int = 0,
        time: float = 0.0,
        since: float = 0.0,
    ) -> tuple[Cohort, Record]:
        """The cohort of a round, and the state of the choice after it.

        Args:
            state: that of the choice (`Choice.begin`).
            there: which of some clients can be asked now.
            seconds: what an order would take them.
            count: how many are wanted; by default `size`.
            nth: which draw of the round this is, from 0.
            time: virtual seconds; `since` those at which the round before began.

        Raises ConfigError for stragglers where the method counts steps.
        """
        present = self.membership.present(number, time)
        gone = self.membership.leaving(number, since, time) if nth == 0 else []
        most = present if isinstance(present, int) else len(present)
        if not most:
            return Cohort([], gone=gone), state
        ask = Ask(
            number, nth, self.seed, min(self.size if count is None else count, most), present, there, self._sizes,
            seconds,
        )  # fmt: skip
        chosen = self.choice.draw(state, ask)
        clients = chosen.clients
        if not self.stragglers:
            some = [k for k in clients if self.data.size(k) > 0]
            return Cohort(some, gone=gone, factors=chosen.factors), chosen.state
        plan: Plan = self.method.plan()
        if plan.steps is not None or plan.epochs < 1:
            raise ConfigError("stragglers do fewer local epochs, but this method is set to local steps")
        rng = seeds.rng(self.seed, "stragglers", number)
        slow = sorted(
            int(k) for k in rng.choice(clients, round(self.stragglers * len(clients)), replace=False)
        )
        if not getattr(self.method, "partial_work", False):
            rest = [k for k in clients if k not in slow]
            return Cohort(rest, dropped=slow, gone=gone, factors=chosen.factors), chosen.state
        done = rng.integers(1, max(plan.epochs, 2), len(slow))
        epochs = {int(k): int(e) for k, e in zip(slow, done, strict=True)}
        return Cohort(clients, epochs, gone=gone, factors=chosen.factors), chosen.state

    def _sizes(self, clients: Clients) -> Clients:
        return np.array([self.data.size(int(k)) for k in clients], np.int64)
