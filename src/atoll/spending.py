"""What a run spends of its privacy: written down before anything is released, and never more than was allowed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from atoll.channel import Chain, Local, Skellam
from atoll.channel.masked import SecAgg
from atoll.contract import Outcome
from atoll.errors import BudgetError, ConfigError
from atoll.privacy import Event, Everyone, Fixed, Gaussian, Laplace, Ledger, Poisson, Sampling, Terms
from atoll.privacy import Skellam as SkellamEvent
from atoll.rounds import choosing
from atoll.rounds.play import Played, Simulation
from atoll.rounds.spent import Spent
from atoll.settings import Settings

__all__ = ["Spending"]

FILE = "privacy.jsonl"
"""The ledger in a run's folder."""


class _Cost(NamedTuple):
    """What a round of one kind is accounted for."""

    event: Event
    private: bool


class Spending:
    """The ledger of a run whose updates are blurred; without noise there is nothing to it.

    Raises ConfigError for a budget that nothing spends, or a delta that promises nothing.
    """

    def __init__(self, settings: Settings, simulation: Simulation) -> None:
        self.settings, self.simulation = settings, simulation
        chain = simulation.channel
        self.chain = chain if isinstance(chain, Chain) else None
        self.population = len(simulation.data)
        self._ledger: Ledger | None = None
        self._figures: dict[str, object] = {}
        self._kept = False
        if not self.blurs:
            for key in ("epsilon", "delta"):
                if getattr(settings, key) is not None:
                    raise ConfigError(
                        f"{key} = {getattr(settings, key)} is about a budget, and nothing in this run spends any",
                        hint='add noise: channel = "clip:0.5 | noise:1.0"',
                    )
            return
        self.terms = Terms(
            level="user", delta=self.delta, population=self.population, epsilon=settings.epsilon
        )

    @property
    def blurs(self) -> bool:
        """Whether anything is spent, because something is blurred."""
        return self.chain is not None and self._cost(self.population) is not None

    @property
    def delta(self) -> float:
        """The chance that a promise may fail with: by default n^-1.1 for n clients (McMahan et al., ICLR 2018)."""
        return self.population**-1.1 if self.settings.delta is None else self.settings.delta

    def _cost(self, present: int) -> _Cost | None:
        """What a round is accounted for with so many clients to draw from; None where nothing is blurred."""
        assert self.chain is not None
        central = self.chain.noise
        if central is not None and central.multiplier:
            return _Cost(
                Gaussian(noise=central.multiplier, sampling=self._sampling(present)), central.private
            )
        for each in self.chain.transforms:
            if isinstance(each, Local) and each.multiplier:
                kind = Gaussian if each.kind == "gaussian" else Laplace
                return _Cost(kind(noise=each.multiplier), False)
            if isinstance(each, Skellam):
                mask = next(other for other in self.chain.transforms if isinstance(other, SecAgg))
                assert self.chain.setting is not None
                l1, l2 = each.sensitivity(mask.step, self.chain.setting.size)
                blur = SkellamEvent(
                    deviation=each.multiplier * l2, l1=l1, l2=l2, sampling=self._sampling(present)
                )
                return _Cost(blur, False)
        return None

    def _sampling(self, present: int) -> Sampling:
        size = self.simulation.cohorts.size
        if size >= present:
            return Everyone()
        if isinstance(self.simulation.cohorts.choice, choosing.Poisson):
            return Poisson(size / present)
        return Fixed(size, present)

    # --- the ledger -------------------------------------------------------------------------------------------

    def open(self, folder: Path | None) -> Ledger:
        """The ledger: in the run's folder, where it has one."""
        if self._ledger is None:
            terms = self.terms
            self._kept = folder is not None
            self._ledger = Ledger.nowhere(terms) if folder is None else Ledger.begin(folder / FILE, terms)
        return self._ledger

    def close(self) -> None:
        """Let others write."""
        if self._ledger is not None and self._kept:
            self.figures()
            self._ledger.close()
            self._ledger = None

    def exhausted(self, folder: Path | None) -> bool:
        """Whether the next round would spend more than is allowed.

        Raises BudgetError where not even a first round may be played.
        """
        if not self.blurs or self.settings.epsilon is None:
            return False
        ledger, cost = self.open(folder), self._next()
        if ledger.allows(cost.event):
            return False
        if not ledger.charges:
            raise BudgetError(
                f"a single round would spend more than epsilon = {self.settings.epsilon:g} (delta = {self.delta:g})",
                hint="more noise, or a smaller cohort; `atoll privacy --epsilon` says how much noise a budget asks for",
            )
        return True

    def _next(self) -> _Cost:
        now = self.simulation
        present = now.cohorts.membership.present(now.number + 1, now.progress.began)
        cost = self._cost(max(1, present if isinstance(present, int) else len(present)))
        assert cost is not None
        return cost

    def charged(self, played: Played, folder: Path | None) -> Played:
        """Pay for a round that was played: when this returns, it may be shown to somebody, and not before."""
        if not self.blurs:
            return played
        ledger, cost = self.open(folder), self._next()
        ledger.charge(cost.event, played.record.number, private=cost.private)
        most = ledger.at_most()
        if self.settings.epsilon is not None:  # what was charged is within it, whatever the quick bound says
            most = min(most, self.settings.epsilon)
        spent = Spent(
            ledger.terms.level,
            most,
            self.delta,
            cost.event.noise,
            cost.private,
            _clipped(played.outcomes),
        )
        return replace(played, record=replace(played.record, spent=spent))

    def figures(self) -> dict[str, object]:
        """What a result says of it."""
        ledger = self._ledger
        if ledger is not None:
            self._figures = {
                "epsilon": _plain(ledger.spent().epsilon),
                "delta": self.delta,
                "private": all(each.private for each in ledger.charges),
                "privacy": ledger.statement(),
            }
        return self._figures


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _clipped(outcomes: Sequence[Outcome]) -> float | None:
    """The share of updates that were shortened."""
    found = [outcome.metrics["clipped"] for outcome in outcomes if "clipped" in outcome.metrics]
    return sum(found) / len(found) if found else None
