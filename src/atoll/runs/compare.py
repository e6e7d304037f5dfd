"""Runs beside each other: what can be compared, as what, and what can be made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from atoll.errors import ConfigError
from atoll.measures import Target, parts
from atoll.runs import compare_view, figures, report
from atoll.runs.averages import Compared, Group
from atoll.runs.csvs import comparison_csv
from atoll.runs.events import Event
from atoll.runs.folder import RunFolder
from atoll.runs.grouping import grouped, labels
from atoll.runs.story import Story
from atoll.runs.transfer import partners

__all__ = ["Comparison"]

_KINDS = ("overall", "clients", "personal")


@dataclass(frozen=True)
class Comparison(Compared):
    """Experiments beside each other (see `Compared`), made of runs, and what is made of them."""

    @staticmethod
    def of(runs: Sequence[Sequence[Event] | RunFolder], target: str | None = None) -> Comparison:
        """Compare runs, given as folders or as their events.

        Args:
            target: the value to reach, such as "accuracy:0.9", or "0.9" of what it shows; by default that of the
                runs, if they agree on one.

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
        goal = _goal(stories, target)
        parts = grouped(stories)
        named = zip(labels(parts), parts, partners(parts), strict=True)
        groups = [Group(label, part, measure, goal, alone) for label, part, alone in named]
        return Comparison(measure, goal, groups, runs)

    def csv(self) -> str:
        """The figures of `Group.table` for a spreadsheet: a line an experiment, mean and deviation side by side."""
        return comparison_csv(self.to_dict())

    def __str__(self) -> str:
        return compare_view.text(self)

    def _repr_html_(self) -> str:
        return compare_view.html(self)

    def report(self, path: str | Path) -> Path:
        """Write one self-contained page with the comparison and every run in it.  Raises RunError."""
        names = [group.label for group in self.groups]
        title = " vs ".join(names) if len(names) <= 3 else f"{names[0]} and {len(names) - 1} others"
        report.write(Path(path), title, [story.events for story in self.stories], comparison=self.to_dict())
        return Path(path)

    def figures(self, directory: str | Path) -> list[Path]:
        """Write figures for a paper, each as SVG and PNG.  Raises MissingExtraError without matplotlib."""
        return figures.write_comparison(self, Path(directory))


def _goal(stories: Sequence[Story], target: str | None) -> Target | None:
    """The target; a bare number is one of the figure that the comparison shows."""
    measure = stories[0].measure
    shown = "own" if any(story.main == "own" for story in stories) else measure
    better = {name: value for story in stories for name, value in story.better.items()}
    if target is None:
        given = {str(story.start["target"]) for story in stories if story.start.get("target")}
        goal = Target.parse(given.pop(), shown) if len(given) == 1 else None
        return goal and replace(goal, better=better.get(parts(goal.measure)[1]))
    known = {name for story in stories for kind in _KINDS for name in story.final.get(kind) or {}}
    known |= {measure, *better}
    return Target.parse(target, shown).check({name: better.get(name) for name in known}, "no run measures")
