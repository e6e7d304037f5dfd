"""Runs beside each other: curves and final scores of several experiments, each over its seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atoll.errors import ConfigError
from atoll.measures import Target
from atoll.runs.events import Event
from atoll.runs.folder import RunFolder
from atoll.runs.grouping import grouped, labels
from atoll.runs.story import Story
from atoll.runs.transfer import Transfer, partners

__all__ = ["Average", "Comparison", "Curve", "Group"]

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
    sample standard deviation to either side of the mean of three and more, and the curve itself for one.
    """

    rounds: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]
    each: list[list[float]]

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
        return Curve(rounds, mean, low, high, each)


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

        `bytes` (up and down, of all clients), `seconds` (of rounds without
        evaluations) and `rounds` are the whole run's; those `..._to_target` are up to the first evaluated round at
        the target, over the `reached` seeds that came to it.
        """
        arrivals = [story.arrival(self.goal) if self.goal else None for story in self.stories]
        there = [(n, *s.spent(n)) for s, n in zip(self.stories, arrivals, strict=True) if n is not None]
        whole = [story.spent() for story in self.stories]
        beside = [Transfer.of(story, local) for story, local in zip(self.stories, self.alone, strict=False)]
        moved = [each for each in beside if each is not None]
        return {
            "global": Average.of((s.final.get("overall") or {}).get(self.measure) for s in self.stories),
            **{key: self.score(name) for key, name in _SCORES.items()},
            "gain": Average.of(each.gain for each in moved),
            "worse_off": Average.of(each.worse_off for each in moved),
            "worse_by": Average.of(each.worse_by for each in moved),
            "rounds_to_target": Average.of(number for number, _, _ in there),
            "bytes_to_target": Average.of(volume for _, volume, _ in there),
            "seconds_to_target": Average.of(seconds for _, _, seconds in there),
            "reached": len(there) if self.goal else None,
            "bytes": Average.of(volume for volume, _ in whole),
            "seconds": Average.of(seconds for _, seconds in whole),
            "rounds": Average.of(len(story.rounds) for story in self.stories),
        }

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
            "table": table,
        }


@dataclass(frozen=True)
class Comparison:
    """Experiments beside each other.

    `measure` is the main one ("accuracy" or "loss"), `goal` the value to reach or None, `runs` what was compared, as
    it was given. `failed` says which runs were to be compared too, but failed, and why.
    """

    measure: str
    goal: Target | None
    groups: list[Group]
    runs: Sequence[Any]
    failed: Sequence[str] = ()

    @staticmethod
    def of(runs: Sequence[Sequence[Event] | RunFolder], target: str | None = None) -> Comparison:
        """Compare runs, given as folders or as their events.

        Args:
            target: the value to reach, such as "accuracy:0.9"; by default that of the runs, if they agree on one.

        Raises ConfigError where there is nothing to compare, or the runs have different main measures.
        """
        stories = []
        for index, run in enumerate(runs):
            name = run.name if isinstance(run, RunFolder) else f"run {index + 1}"
            story = Story(run.log().events if isinstance(run, RunFolder) else run, name)
            if not story.start:
                raise ConfigError(f"{name} has not begun: there is nothing to compare", hint="leave it out")
            stories.append(story)
        if not stories:
            raise ConfigError("there are no runs to compare", hint="name at least one")
        measures = {story.measure: story.name for story in stories}
        if len(measures) > 1:
            shown = ", ".join(f"{name} has {measure}" for measure, name in measures.items())
            raise ConfigError(f"these runs have no measure in common: {shown}")
        measure = stories[0].measure
        goal = _goal(stories, target, measure)
        parts = grouped(stories)
        named = zip(labels(parts), parts, partners(parts), strict=True)
        groups = [Group(label, part, measure, goal, alone) for label, part, alone in named]
        return Comparison(measure, goal, groups, runs)

    @property
    def stories(self) -> list[Story]:
        """All runs, group by group."""
        return [story for group in self.groups for story in group.stories]

    @property
    def shown(self) -> str:
        """What curves show: the main measure, or "own" (see `Story.value`) where some of the runs personalise."""
        return "own" if any(story.final.get("personal") for story in self.stories) else self.measure

    def to_dict(self) -> dict[str, Any]:
        """The comparison as plain values: curves of `shown`; `target` is null where it is of something else."""
        target = self.goal.value if self.goal and self.goal.measure == self.shown else None
        groups = [group.to_dict(self.shown) for group in self.groups]
        return {"measure": self.measure, "shown": self.shown, "target": target, "groups": groups}

    def csv(self) -> str:
        """The figures of `Group.table` for a spreadsheet: a line an experiment, mean and deviation side by side."""
        from atoll.runs.csvs import comparison_csv

        return comparison_csv(self.to_dict())

    def __str__(self) -> str:
        from atoll.runs.compare_view import text

        return text(self)

    def _repr_html_(self) -> str:
        from atoll.runs.compare_view import html

        return html(self)

    def report(self, path: str | Path) -> Path:
        """Write one self-contained page with the comparison and every run in it.  Raises RunError."""
        from atoll.runs import report

        names = [group.label for group in self.groups]
        title = " vs ".join(names) if len(names) <= 3 else f"{names[0]} and {len(names) - 1} others"
        report.write(Path(path), title, [story.events for story in self.stories], comparison=self.to_dict())
        return Path(path)

    def figures(self, directory: str | Path) -> list[Path]:
        """Write figures for a paper, each as SVG and PNG.  Raises MissingExtraError without matplotlib."""
        from atoll.runs.figures import write_comparison

        return write_comparison(self, Path(directory))


def _goal(stories: Sequence[Story], target: str | None, measure: str) -> Target | None:
    if target is None:
        given = {str(story.start["target"]) for story in stories if story.start.get("target")}
        return Target.parse(given.pop(), measure) if len(given) == 1 else None
    goal = Target.parse(target, measure)
    last: list[Mapping[str, Any]] = [story.final for story in stories if story.final]
    known = {
        name
        for found in last
        for kind in ("overall", "clients", "personal")
        for name in found.get(kind) or {}
    }
    goal.check({*known, measure}, "no run measures")
    return goal
