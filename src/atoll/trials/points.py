"""The points of a sweep: a grid of settings times seeds, checked as a whole before anything runs."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from atoll import spec
from atoll.errors import ConfigError, DataError
from atoll.experiment import Experiment
from atoll.measures import Better
from atoll.runs.grouping import settings, value_words
from atoll.runs.settings import OPERATIONAL
from atoll.trials.baselines import BASELINES, fits
from atoll.trials.shared import Shared, takes

__all__ = ["Point", "check", "digest", "fingerprint", "parse_grid", "points"]

Grid = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Point:
    """One run of a sweep. `number` counts from 1; `changes` are the grid's values for it.

    `baseline` says that nobody named it: it is run for the others to be compared with.
    """

    number: int
    changes: Mapping[str, Any]
    experiment: Experiment
    baseline: bool = False

    @property
    def name(self) -> str:
        """What the point's files are called."""
        return f"{self.number:03}"

    @property
    def label(self) -> str:
        """The grid's values, and the seed."""
        words = [f"{key}={value_words(key, value)}" for key, value in self.changes.items()]
        return ", ".join([*words, f"seed={self.experiment.seed}"])

    @property
    def key(self) -> str:
        """What the point has in common with its run (see `fingerprint`)."""
        return fingerprint(self.experiment.to_dict())


def parse_grid(texts: Sequence[str]) -> dict[str, list[Any]]:
    """Read ``lr=0.01,0.1`` and ``model=["mlp:64,32", "2nn"]`` (an array as in TOML, for values with commas).

    Raises ConfigError.
    """
    grid: dict[str, list[Any]] = {}
    for text in texts:
        key, values = spec.assignment(text, "--grid", "KEY=VALUE,VALUE ...", "lr=0.01,0.1")
        if key in grid:
            raise ConfigError(f"--grid has {key} twice", hint="give all of its values at once, with commas")
        try:
            array = values.startswith("[")
            grid[key] = (
                tomllib.loads(f"v = {values}")["v"] if array else spec.items(values, f"--grid {key} =")
            )
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(
                f"--grid {text!r} is not an array: {error}", hint='as in ["mlp:64", "2nn"]'
            ) from None
    return grid


def points(
    file: str | Path | None,
    sets: Sequence[str],
    grid: Grid,
    seeds: int,
    overrides: Mapping[str, Any],
    baselines: bool = False,
) -> list[Point]:
    """Every combination of the grid's values, each with `seeds` seeds; a run gets one worker unless it says more.

    Where there are several methods, each takes the settings that it knows; combinations that are the same without
    the others are one. With `baselines`, the points of those methods follow, in the settings of the combinations.

    Raises ConfigError, with the combination at fault, for a key or a value that an experiment does not take, and for
    a setting that none of the methods knows.
    """
    if seeds < 1:
        raise ConfigError(f"seeds = {seeds}, but it must be at least 1")
    for key, values in grid.items():
        if key == "seed" or key in OPERATIONAL:
            hint = "--seeds N repeats every point" if key == "seed" else "set it for all runs, with --set"
            raise ConfigError(f"{key} is nothing to sweep", hint=hint)
        if not values:
            raise ConfigError(f"the grid has no values for {key}", hint="leave it out")
    shared = Shared(file, sets, overrides)
    extra = BASELINES if baselines else ()
    combinations = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    named = dict.fromkeys(shared.method(given) for given in combinations)
    every = [*named, *(method for method in extra if method not in named)]
    found: dict[str, Point] = {}

    def add(given: Mapping[str, Any], method: str, baseline: bool) -> None:
        kept = {key: value for key, value in given.items() if takes(method, key, every)}
        experiment = shared.read(kept, method, every)
        if baseline and not fits(method, experiment.model):
            return
        workers = experiment.workers or 1
        whole = experiment.to_dict()
        changes = {key: whole[key] for key in kept}
        for seed in range(experiment.seed, experiment.seed + seeds):
            settled = dataclasses.replace(experiment, seed=seed, workers=workers)
            point = Point(len(found) + 1, changes, settled, baseline)
            if point.key not in found:
                found[point.key] = point
            elif not baseline and len(kept) == len(given):
                raise ConfigError(f"the grid has {point.label} twice", hint="leave one out")

    for given in combinations:
        add(given, shared.method(given), False)
    for given, method in itertools.product(combinations, extra):
        add({**given, "method": method}, method, True)
    return list(found.values())


def check(points: Sequence[Point]) -> Mapping[str, Better | None]:
    """Build what the points need, once for each combination of data, model and method, without running anything.

    Returns the measures the runs will have, and which of their values are the better ones.

    Raises ConfigError or DataError, with the point at fault.
    """
    seen: set[str] = set()
    measured: dict[str, Better | None] = {}
    for point in points:
        experiment = point.experiment
        own = set(experiment.settings)
        parts = {key: value for key, value in settings(experiment.to_dict()).items() if key not in own}
        if (key := _text(parts)) in seen:
            continue
        seen.add(key)
        try:  # on the processor: the device is for the runs
            federation = dataclasses.replace(experiment, device="cpu", engine="loop", runs=None).build()
        except (ConfigError, DataError) as error:
            raise type(error)(f"{error.message} ({point.label})", hint=error.hint) from None
        measured |= federation.judge.better
    return measured


def fingerprint(config: Mapping[str, Any]) -> str:
    """A name for what a run computes: its settings and its seed, but not where and how it is carried out."""
    return hashlib.sha256(_text({**settings(config), "seed": config.get("seed")}).encode()).hexdigest()


def digest(points: Sequence[Point]) -> str:
    """A short name for a sweep: the same for the same grid, whatever the seeds, with baselines and without."""
    found = {_text(settings(point.experiment.to_dict())) for point in points if not point.baseline}
    return hashlib.sha256("\n".join(sorted(found)).encode()).hexdigest()[:8]


def _text(value: Mapping[str, Any]) -> str:
    return msgspec.json.encode(value, order="deterministic").decode()
