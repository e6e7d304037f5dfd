"""Experiments beside each other in numbers: curves and final scores, each over its seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

from atoll.measures import Target
from atoll.runs.story import Spent, Story
from atoll.runs.transfer import Transfer, ground

__all__ = ["CLIENTS", "Average", "Compared", "Curve", "Group"]

T = TypeVar("T")

CLIENTS = 5_000
"""Up to so many judged clients of a run are compared one by one."""

_SCORES = {"client_mean": "clients", "personal": "personal"}
_SCORES |= {name: name for name in ("own", "pooled", "std", "p10", "worst", "newcomers")}


@dataclass(frozen=True)
class Average:
    """Mean over seeds, and their sample standard deviation (n - 1), None where there is one seed."""

    mean: float
    std: float | None

    @staticmethod
    def of(values: Iterable[float | None]) -> Average | None:
        """Of the values that are known; None if none is."""
        known = [value for value in values if value is not None]
        if not known:
            return None
        return Average(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None)

    def to_dict(self) -> dict[str, float | None]:
        return {"mean": self.mean, "std": self.std}


@dataclass(frozen=True)
class Curve:
    """A measure over rounds, for the rounds in which every seed was evaluated.

    `each` holds the seeds' values. `low` and `high` are a band: from the least to the greatest of two seeds, one
    sample standard deviation to either side of the mean of three and more, and the curve itself for one. `bytes` (up
    and down, of all clients) and `seconds` (the machine's, without evaluations) are what was spent up to each of the
    rounds, on average over seeds; so are `virtual_seconds` and `energy` (joules) on a virtual clock, and `epsilon` (at
    most) where updates are blurred; empty where there is none.
    """

    rounds: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]
    each: list[list[float]]
    bytes: list[float]
    seconds: list[float]
    virtual_seconds: list[float]
    energy: list[float]
    epsilon: list[float]

    @staticmethod
    def of(stories: Sequence[Story], name: str) -> Curve:
        """The curve of a measure (see `Story.value`) over runs."""
        found = [story.curve(name) for story in stories]
        known = [curve for curve in found if curve]
        rounds = sorted(set(known[0]).intersection(*known[1:])) if known else []
        mean, low, high = [], [], []
        for number in rounds:
            values = [curve[number] for curve in known]
            middle = statistics.fmean(values)
            reach = statistics.stdev(values) if len(values) > 2 else 0.0
            mean.append(middle)
            low.append(middle - reach if len(values) > 2 else min(values))
            high.append(middle + reach if len(values) > 2 else max(values))
        each = [[curve[number] for number in rounds] if curve else [] for curve in found]
        costs = [story.costs for story, curve in zip(stories, found, strict=True) if curve]
        spent = [[[cost[n][part] for cost in costs] for n in rounds] for part in range(len(Spent._fields))]
        averages = [
            [] if any(None in values for values in part) else [statistics.fmean(v) for v in part]  # type: ignore[arg-type]
            for part in spent
        ]
        return Curve(rounds, mean, low, high, each, *averages)


@dataclass(frozen=True)
class Group:
    """Runs of one experiment that differ in their seeds only, and its name among the others.

    `alone` are the runs of Local beside which each of them stands, in the same order; None where there is none.
    """

    label: str
    stories: list[Story]
    measure: str
    goal: Target | None
    alone: Sequence[Story | None] = field(default=(), repr=False)

    def curve(self, name: str | None = None) -> Curve:
        """The curve of a measure, by default the main one."""
        return Curve.of(self.stories, name or self.measure)

    def score(self, name: str) -> Average | None:
        """A figure of the last evaluations (see `Story.value`) over seeds."""
        return Average.of(story.value(story.final, name) for story in self.stories)

    @property
    def table(self) -> dict[str, Average | int | None]:
        """The figures to compare, over seeds.

        `global` is the main measure of the global model on the global test set, `client_mean` its mean over clients'
        test data, `personal` that of clients' own models. `own` (mean over clients), `pooled` (mean over their
        samples), `std`, `p10` and `worst` (over clients) are about the models clients would use: their own where the
        method personalises, else the global one. `newcomers` is the mean over clients that never took part.

        Where the same seed was run with Local, client by client: `gain` is by how much clients are better than with
        their Local model on average, `worse_off` the share of them that is worse, `worse_by` by how much those are
        on average.

        `bytes` (up and down, of all clients), `seconds` (the machine's, of rounds without evaluations) and `rounds` are
        the whole run's, on a virtual clock also `virtual_seconds`, `energy` (joules) and `wasted` (the share of
        client-seconds whose replies were not used), where updates are blurred also `epsilon`; those `..._to_target` are
        up to the first evaluated round at the target, over the `reached` seeds that came to it.
        """
        arrivals = [story.arrival(self.goal) if self.goal else None for story in self.stories]
        there = [(n, s.spent(n)) for s, n in zip(self.stories, arrivals, strict=True) if n is not None]
        whole = [story.spent() for story in self.stories]
        beside = [Transfer.of(story, local) for story, local in zip(self.stories, self.alone, strict=False)]
        moved = [each for each in beside if each is not None]
        return {
            "global": Average.of((s.final.get("overall") or {}).get(self.measure) for s in self.stories),
            **{key: self.score(name) for key, name in _SCORES.items()},
            "gain": Average.of(each.gain for each in moved),
            "worse_off": Average.of(each.worse_off for each in moved),
            "worse_by": Average.of(each.worse_by for each in moved),
            "rounds_to_target": Average.of(number for number, _ in there),
            **{
                f"{name}_to_target": Average.of(getattr(cost, name) for _, cost in there)
                for name in Spent._fields
            },
            "reached": len(there) if self.goal else None,
            **{name: Average.of(getattr(cost, name) for cost in whole) for name in Spent._fields},
            "wasted": Average.of(story.clocked.get("wasted") for story in self.stories),
            "rounds": Average.of(len(story.rounds) for story in self.stories),
        }

    @property
    def private(self) -> bool | None:
        """Whether all of its noise is secret; None where nothing is blurred. If not, epsilon is no promise."""
        found = [story.promised["private"] for story in self.stories if story.promised]
        return all(found) if found else None

    @property
    def delta(self) -> float | None:
        """That of its epsilon."""
        return next((story.promised["delta"] for story in self.stories if story.promised), None)

    def to_dict(self, curve_of: str | None = None) -> dict[str, Any]:
        """As plain values, with the curve of a measure, by default the main one."""
        curve = self.curve(curve_of)
        table = {
            key: value.to_dict() if isinstance(value, Average) else value for key, value in self.table.items()
        }
        return {
            "label": self.label,
            "runs": [story.name for story in self.stories],
            "seeds": [story.seed for story in self.stories],
            "curve": dict(vars(curve)),
            **({} if self.private is None else {"private": self.private, "delta": self.delta}),
            "table": table,
            "own": [_by_client(story.own) if len(story.own) <= CLIENTS else {} for story in self.stories],
        }


@dataclass(frozen=True)
class Compared:
    """Experiments beside each other.

    `measure` is the main one ("accuracy" or "loss"), `goal` the value to reach or None, `runs` what was compared, as
    it was given. `failed` says which runs were to be compared too, but failed, and why.
    """

    measure: str
    goal: Target | None
    groups: list[Group]
    runs: Sequence[Any]
    failed: Sequence[str] = ()

    @property
    def stories(self) -> list[Story]:
        """All runs, group by group."""
        return [story for group in self.groups for story in group.stories]

    @property
    def clocked(self) -> bool:
        """Whether some of the runs have a virtual clock."""
        return any(story.clocks for story in self.stories)

    @property
    def blurred(self) -> bool:
        """Whether some of the runs spend privacy."""
        return any(group.private is not None for group in self.groups)

    @property
    def shown(self) -> str:
        """What curves show: "own" (see `Story.value`), or the main measure where no client is judged."""
        return "own" if any(story.main == "own" for story in self.stories) else self.measure

    def to_dict(self) -> dict[str, Any]:
        """The comparison as plain values: curves of `shown`; `target` is null where it is of something else.

        `own` of a group is the main measure of the model that each client would use, run by run, {client: value}, empty
        where over 5,000 are judged. Runs with the same number in `ground` have the same clients, whose `names` follow.
        """
        target = self.goal.value if self.goal and self.goal.measure == self.shown else None
        groups = [group.to_dict(self.shown) for group in self.groups]
        known: dict[str, int] = {}
        for group, found in zip(self.groups, groups, strict=True):
            found["ground"] = [known.setdefault(ground(story), len(known)) for story in group.stories]
        names: dict[str, dict[str, str]] = {}
        for story in self.stories:
            number = str(known[ground(story)])
            if number not in names:
                called = story.names
                listed = {k: called[k] for k in islice(story.own, CLIENTS) if k in called}
                names[number] = _by_client(listed)
        return {
            "measure": self.measure, "shown": self.shown, "target": target, "groups": groups, "names": names,
        }  # fmt: skip


def _by_client(values: Mapping[int, T]) -> dict[str, T]:
    """With keys as JSON has them."""
    return {str(client): value for client, value in values.items()}
