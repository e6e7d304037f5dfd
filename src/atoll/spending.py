"""What a run spends of its privacy: written down before anything is released, and never more than was allowed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from atoll.channel import Chain, Local, Skellam
from atoll.channel.masked import SecAgg
from atoll.contract import Outcome, inmost
from atoll.dpsgd.fits import of_samples
from atoll.dpsgd.records import Records
from atoll.errors import BudgetError, ConfigError
from atoll.privacy import (
    Correlated,
    Event,
    Gaussian,
    Laplace,
    Ledger,
    Level,
    Sampling,
    Terms,
    costliest,
    epsilon,
    usual_delta,
)
from atoll.privacy import Skellam as SkellamEvent
from atoll.rounds.chances import chances
from atoll.rounds.play import Played, Simulation
from atoll.rounds.spent import Spent
from atoll.settings import Settings

__all__ = ["Spending"]

FILE = "privacy.jsonl"
"""The ledger in a run's folder."""

BESIDE = "privacy-records.jsonl"
"""That of single samples, where the other one is about clients."""


class _Cost(NamedTuple):
    """What a round is accounted for."""

    event: Event
    private: bool


class _Account:
    """A ledger, from when it is first needed to the end of the run; in a folder, where there is one."""

    def __init__(self, terms: Terms, name: str) -> None:
        self.terms, self.name = terms, name
        self.kept = False
        self.ledger: Ledger | None = None

    def open(self, folder: Path | None) -> Ledger:
        if self.ledger is None:
            self.kept = folder is not None
            self.ledger = (
                Ledger.nowhere(self.terms) if folder is None else Ledger.begin(folder / self.name, self.terms)
            )
        return self.ledger

    def close(self) -> None:
        if self.ledger is not None and self.kept:
            self.ledger.close()
            self.ledger = None


class Spending:
    """The ledgers of a run that is blurred; without noise there is nothing to it.

    A channel's noise hides clients, level "user". Where there is only `dp_sgd`, it hides samples, level "record", and a
    round is accounted for as that client of its cohort is whose samples would be hidden least if it were in all rounds.
    With both there are two ledgers and two promises; a budget is about clients then, and samples are counted beside.

    Raises ConfigError for a budget that nothing spends, or a delta that promises nothing.
    """

    def __init__(self, settings: Settings, simulation: Simulation) -> None:
        self.settings, self.simulation = settings, simulation
        channel = simulation.channel
        self.records = channel if isinstance(channel, Records) else None
        inner = inmost(channel)
        self.chain = inner if isinstance(inner, Chain) else None
        self._figures: dict[str, object] = {}
        self._beside: _Account | None = None
        self.level: Level = "user" if self._of_clients(len(simulation.data)) is not None else "record"
        samples_hidden = bool(self.records and self.records.rule and self.records.rule.noise)
        self.blurs = self.level == "user" or samples_hidden
        if not self.blurs:
            for key in ("epsilon", "delta"):
                if getattr(settings, key) is not None:
                    raise ConfigError(
                        f"{key} = {getattr(settings, key)} is about a budget, and nothing in this run spends any",
                        hint='add noise: channel = "clip:0.5 | noise:1.0", or dp_sgd = "1.0,1.1"',
                    )
            return
        data = simulation.data
        samples = sum(map(data.size, range(len(data)))) if samples_hidden else 0
        self.population = len(data) if self.level == "user" else samples
        terms = Terms(
            level=self.level, delta=self.delta, population=self.population, epsilon=settings.epsilon
        )
        self._account = _Account(terms, FILE)
        if self.level == "user" and samples_hidden:
            beside = Terms(level="record", delta=usual_delta(samples), population=samples)
            self._beside = _Account(beside, BESIDE)

    @property
    def delta(self) -> float:
        """The chance that a promise may fail with."""
        return usual_delta(self.population) if self.settings.delta is None else self.settings.delta

    def _of_clients(self, present: int) -> _Cost | None:
        """What hides clients in a round, with so many to draw from; None where nothing does."""
        if self.chain is None:
            return None
        central = self.chain.noise
        if central is not None and central.multiplier and central.matrix is not None:
            (state,) = (part for part in self.simulation.progress.told.values() if "key" in part)
            return _Cost(central.event(state), central.private)
        if central is not None and central.multiplier:
            return _Cost(
                Gaussian(noise=central.multiplier, sampling=self._sampling(present)), central.private
            )
        secret = self.chain.setting is not None and self.chain.setting.secret
        for each in self.chain.transforms:
            if isinstance(each, Local) and each.multiplier:
                kind = Gaussian if each.kind == "gaussian" else Laplace
                return _Cost(kind(noise=each.multiplier), secret)
            if isinstance(each, Skellam):
                mask = next(other for other in self.chain.transforms if isinstance(other, SecAgg))
                assert self.chain.setting is not None
                l1, l2 = each.sensitivity(mask.step, self.chain.setting.size)
                blur = SkellamEvent(
                    deviation=each.multiplier * l2, l1=l1, l2=l2, sampling=self._sampling(present)
                )
                return _Cost(blur, secret)
        return None

    def _of_records(self, clients: Sequence[int]) -> _Cost | None:
        """What hides samples in a round of these clients: what hides those least whom it hides least."""
        assert self.records is not None
        assert self.records.rule is not None
        sizes = {size for client in clients if (size := self.simulation.data.size(client))}
        events = of_samples(self.records.rule, self.simulation.method, sizes, self.records.calls)
        if not events:
            return None
        delta = self.delta if self._beside is None else self._beside.terms.delta
        return _Cost(costliest(events, delta, self.settings.rounds), False)

    def _sampling(self, present: int) -> Sampling:
        return chances(self.simulation.cohorts.choice, self.simulation.cohorts.size, present)

    # --- the ledger -------------------------------------------------------------------------------------------

    def open(self, folder: Path | None) -> Ledger:
        """The ledger that a budget is about: in the run's folder, where it has one."""
        return self._account.open(folder)

    def close(self) -> None:
        """Let others write."""
        if self.blurs:
            self.figures()
            self._account.close()
            if self._beside is not None:
                self._beside.close()

    def exhausted(self, folder: Path | None) -> bool:
        """Whether the next round would spend more than is allowed.

        Raises BudgetError where not even a first round may be played.
        """
        if not self.blurs or self.settings.epsilon is None:
            return False
        ledger, cost = self.open(folder), self._next()
        if cost is None or ledger.allows(cost.event):
            return False
        if not ledger.charges:
            raise BudgetError(
                f"a single round would spend more than epsilon = {self.settings.epsilon:g} (delta = {self.delta:g})",
                hint="more noise, or a smaller cohort; `atoll privacy --epsilon` says how much noise a budget asks for",
            )
        return True

    def _next(self, clients: Sequence[int] | None = None) -> _Cost | None:
        """What the next round is accounted for, with these clients in it or whoever may be."""
        now = self.simulation
        if self.level == "record":
            return self._of_records(range(len(now.data)) if clients is None else clients)
        present = now.cohorts.membership.present(now.number + 1, now.progress.began)
        return self._of_clients(max(1, present if isinstance(present, int) else len(present)))

    def charged(self, played: Played, folder: Path | None) -> Played:
        """Pay for a round that was played: when this returns, it may be shown to somebody, and not before."""
        if not self.blurs:
            return played
        ledger, number = self.open(folder), played.record.number
        cost = self._next(played.record.cohort)
        if cost is None:
            return played
        again = isinstance(cost.event, Correlated) and number in (each.round for each in ledger.charges)
        if not again:  # a round of a stream that is played again is the same one, to the bit: it was paid for
            ledger.charge(cost.event, number, private=cost.private)
        most, clipped = ledger.at_most(), _clipped(played.outcomes)
        if self.settings.epsilon is not None:  # what was charged is within it, whatever a coarse bound says
            most = min(most, self.settings.epsilon)
        samples = self._charged_beside(number, played.record.cohort, folder)
        spent = Spent(self.level, most, self.delta, cost.event.noise, cost.private, clipped, *samples)
        return replace(played, record=replace(played.record, spent=spent))

    def _charged_beside(
        self, number: int, clients: Sequence[int], folder: Path | None
    ) -> tuple[float | None, float | None]:
        """Pay for what a round tells of single samples: their epsilon and delta after it."""
        if self._beside is None:
            return None, None
        ledger, cost = self._beside.open(folder), self._of_records(clients)
        if cost is not None:
            ledger.charge(cost.event, number, private=cost.private)
        return ledger.at_most(), self._beside.terms.delta

    def promised(self, rounds: int, delta: float) -> float | None:
        """What so many rounds come to at a delta; None where nothing hides clients but noise that others may know."""
        cost = self._next() if self.blurs and self.level == "user" else None
        if cost is None or not cost.private:
            return None
        events = [cost.event] if isinstance(cost.event, Correlated) else [cost.event] * rounds
        return epsilon(events, delta).epsilon

    def figures(self) -> dict[str, object]:
        """What a result says of it."""
        if not self.blurs:
            return {}
        ledger = self._account.ledger
        if ledger is not None:
            self._figures = {
                "epsilon": _plain(ledger.spent().epsilon),
                "delta": self.delta,
                "private": all(each.private for each in ledger.charges),
                "privacy": ledger.statement(),
            }
            if self._beside is not None and (beside := self._beside.ledger) is not None:
                self._figures |= {
                    "samples_epsilon": _plain(beside.spent().epsilon),
                    "samples_delta": beside.terms.delta,
                    "privacy": f"{ledger.statement()}. Single samples: {beside.statement()}",
                }
        return self._figures


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _clipped(outcomes: Sequence[Outcome]) -> float | None:
    """The share of updates that were shortened."""
    found = [outcome.metrics["clipped"] for outcome in outcomes if "clipped" in outcome.metrics]
    return sum(found) / len(found) if found else None
