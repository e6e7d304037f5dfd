"""Runs in a directory, a line each, and finding the runs that a command names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atoll.errors import ConfigError
from atoll.runs.folder import RunFolder, default_place
from atoll.runs.story import Story

__all__ = ["Entry", "entries", "is_run", "resolve"]


@dataclass(frozen=True)
class Entry:
    """A run at a glance; None where the events do not say. `damaged` counts lines that cannot be read."""

    folder: RunFolder
    status: str
    story: Story
    damaged: int

    @staticmethod
    def of(folder: RunFolder) -> Entry:
        """Read a run.  Raises ConfigError where it has no events."""
        log = folder.log()
        ends = [each for each in log.events if each["event"] != "problem"]  # a reader may fail after the end
        return Entry(
            folder,
            folder.status(ends[-1] if ends else None),
            Story(log.events, folder.name),
            len(log.damaged),
        )

    @property
    def round(self) -> int:
        """The last round that was played."""
        return self.story.rounds[-1]["round"] if self.story.rounds else 0

    @property
    def can_resume(self) -> bool:
        """Whether the run is not over and has a checkpoint to go on from; not one that would diverge again."""
        if (self.story.last("error") or {}).get("kind") == "DivergedError":
            return False
        return self.status in ("stopped", "failed", "cut off") and self.story.last("checkpoint") is not None

    def to_dict(self) -> dict[str, Any]:
        """The glance as plain values; on a virtual clock `virtual_seconds` too, of blurred updates what is promised."""
        story = self.story
        spent = story.spent()
        virtual = {} if spent.virtual_seconds is None else {"virtual_seconds": spent.virtual_seconds}
        return {
            "run": self.folder.name,
            "path": str(self.folder.path),
            "status": self.status,
            "method": story.start.get("method"),
            "data": story.start.get("data"),
            "partition": story.start.get("partition"),
            "seed": story.seed,
            "round": self.round,
            "rounds": story.planned,
            "measure": story.start.get("measure"),
            "score": story.score,
            "test": (story.final.get("overall") or {}).get(story.measure),
            "worst": story.value(story.final, "worst"),
            "seconds": round(spent.seconds, 6),
            **virtual,
            **story.promised,
            "damaged": self.damaged,
        }


def entries(place: str | Path | None = None) -> list[Entry]:
    """The runs of a directory (by default where runs are kept) and of its sweeps, oldest first."""
    found = []
    for folder in RunFolder.all(default_place() if place is None else place):
        try:
            found.append(Entry.of(folder))
        except ConfigError:  # it was removed meanwhile, or may not be read
            found.append(Entry(folder, "unreadable", Story([], folder.name), 0))
    return found


def is_run(path: str | Path) -> bool:
    """Whether a path is a run folder."""
    return (Path(path) / "events.jsonl").is_file()


def resolve(names: Sequence[str], place: str | Path | None = None) -> list[RunFolder]:
    """The runs that are meant, each once: a run's path, name, beginning of a name or "last", or a directory of runs.

    Runs of a directory that have not begun are passed over. Raises ConfigError where a name means nothing.
    """
    found: dict[Path, RunFolder] = {}
    for name in names:
        for folder in _meant(name, default_place() if place is None else Path(place)):
            found.setdefault(folder.path.resolve(), folder)
    return list(found.values())


def _meant(name: str, place: Path) -> list[RunFolder]:
    for path in (Path(name), place / name):
        if is_run(path):
            return [RunFolder(path)]
        if path.is_dir():
            inside = [each for each in RunFolder.all(path) if Story(each.log().events).start]
            if inside:
                return inside
    if Path(name).is_dir() and not (Path(name) / "config.toml").is_file():
        raise ConfigError(f"there are no runs in {name}", hint="atoll ls lists the runs")
    return [RunFolder.find(name, place)]
