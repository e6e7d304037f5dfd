"""`atoll.compare`: run federations over several seeds, one after the other, and put them beside each other."""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from atoll.errors import ConfigError, RunError
from atoll.experiment import Experiment
from atoll.federation import Federation
from atoll.measures import Better, Target, called
from atoll.results import Run
from atoll.runs.compare import Comparison
from atoll.runs.folder import RunFolder
from atoll.runs.listing import resolve
from atoll.runs.story import Story
from atoll.trials.baselines import BASELINES, beside, identity
from atoll.trials.points import fingerprint
from atoll.words import duration_text, value_text

__all__ = ["check_target", "compare"]

log = logging.getLogger("atoll.trials")

Item = Federation | Experiment | Mapping[str, Any] | Run | RunFolder | str | os.PathLike[str]
_KINDS = (Federation, Experiment, Mapping, Run, RunFolder, str, os.PathLike)


def compare(
    items: Item | Iterable[Item],
    *,
    seeds: int = 1,
    target: str | None = None,
    runs: str | Path | None = None,
    baselines: bool = False,
) -> Comparison:
    """Run what has not been run yet, and compare it all: ``atoll.compare([fed, fed.replace(method="scaffold")])``.

    Args:
        items: federations, experiments, mappings of an experiment's keywords, and finished runs: as `Run`, or by
            folder or name.
        seeds: how many times to run each federation and experiment, with its own seed and those after it. The
            division of the data and the initial model follow from the seed where the item makes them: an experiment
            does, a federation was given its data.
        target: the value whose cost is compared, such as "accuracy:0.9"; the runs do not stop there.
        runs: directory for run folders; by default where each item keeps its own.
        baselines: run `local`, `fedavg` and `fedavg-ft` too, beside each federation and experiment and with those of
            its settings that they know, unless they are among the items already or cannot train its models.

    The `runs` of what comes back are the results, in order. A run that fails (or diverges) is left out, and named in
    `failed`.

    Raises ConfigError before the first run if an item cannot be run, RunError if all of them fail.
    """
    listed: list[Any] = [items] if isinstance(items, _KINDS) else list(items)  # one of them needs no list
    place = None if runs is None else Path(runs)
    jobs = [job for item in listed for job in _jobs(item, seeds, place)]
    if baselines:
        jobs += _baselines(listed, jobs, seeds, place)
    fresh = [job for job in jobs if isinstance(job, _Job)]
    if target is not None:
        check_target(target, fresh[0].make().judge.better if fresh else None)
    for later in fresh[1:]:
        if later.first:  # what cannot be built must be known before the first run
            later.make()
    results: list[Run | RunFolder] = []
    failed: list[str] = []
    for job in jobs:
        if not isinstance(job, _Job):
            results.append(job)
            continue
        federation = job.make()
        where = f"[{fresh.index(job) + 1}/{len(fresh)}] {federation.keeper.labels['method']}, seed {federation.seed}"
        try:
            run = federation.fit(progress=False)
        except RunError as error:
            failed.append(f"{federation.keeper.labels['method']}, seed {federation.seed}: {error.message}")
            log.warning("%s is left out: %s", where, error.message)
            last = error
            continue
        results.append(run)
        if sys.stderr.isatty():
            print(f"{where}: {_result(run)}", file=sys.stderr)
    if failed and not results:
        raise RunError(f"all {len(failed)} runs failed; the last one: {last.message}", hint=last.hint)
    told = [each.events() if isinstance(each, Run) else each for each in results]
    return dataclasses.replace(Comparison.of(told, target), runs=results, failed=failed)


def check_target(target: str, measured: Mapping[str, Better | None] | None) -> None:
    """Raise ConfigError for a target that is no target, or that runs with these measures cannot reach."""
    goal = Target.parse(target, "accuracy")
    if measured is not None and ":" in target:
        goal.check(measured, "these runs do not measure")


@dataclasses.dataclass(frozen=True, eq=False)
class _Job:
    """A run to make. The federation is built when its turn comes: its data is not kept for longer."""

    make: Callable[[], Federation]
    name: str | None = None
    """What it computes; runs of the same name are the same (None: never mind)."""

    first: bool = False
    """Whether it is its item's first run: the others differ in the seed."""


def _jobs(item: Item, seeds: int, runs: Path | None) -> Iterator[_Job | Run | RunFolder]:
    if seeds < 1:
        raise ConfigError(f"seeds = {seeds}, but it must be at least 1")
    if isinstance(item, (Run, RunFolder)):
        yield item
    elif isinstance(item, (str, os.PathLike)):
        yield from resolve([os.fspath(item)], runs)
    elif isinstance(item, Federation):
        place = {} if runs is None else {"runs": runs}
        for seed in range(item.seed, item.seed + seeds):
            make = lambda seed=seed: item.replace(seed=seed, **place)  # noqa: E731
            yield _Job(make, identity(item, seed), seed == item.seed)
    elif isinstance(item, (Experiment, Mapping)):
        experiment = item if isinstance(item, Experiment) else Experiment.read(**item)
        if runs is not None:
            experiment = dataclasses.replace(experiment, runs=str(runs))
        for seed in range(experiment.seed, experiment.seed + seeds):
            point = dataclasses.replace(experiment, seed=seed)
            yield _Job(point.build, fingerprint(point.to_dict()), seed == experiment.seed)
    else:
        raise ConfigError(
            f"{type(item).__name__} cannot be compared",
            hint="give federations, experiments, mappings of keywords, runs, or run folders",
        )


def _baselines(
    items: Sequence[Item], jobs: Sequence[_Job | Run | RunFolder], seeds: int, runs: Path | None
) -> list[_Job]:
    """The runs of baselines that these jobs lack, each once."""
    bases = [item for item in items if isinstance(item, (Federation, Experiment, Mapping))]
    if not bases:
        raise ConfigError(
            "baselines are run beside federations and experiments, and there are only finished runs",
            hint="give the federation or the experiment, or leave baselines out",
        )
    seen: set[str | None] = set()
    for job in jobs:
        if isinstance(job, _Job):
            seen.add(job.name)
        else:
            story = Story(job.events() if isinstance(job, Run) else job.log().events)
            seen |= {identity(story), fingerprint(story.config)}
    found: list[_Job] = []
    for base in bases:
        for method in BASELINES:
            item = beside(base, method)
            for job in _jobs(item, seeds, runs) if item is not None else ():
                if isinstance(job, _Job) and job.name not in seen:
                    seen.add(job.name)
                    found.append(job)
    return found


def _result(run: Run) -> str:
    last = run.evaluation
    value = None if last is None else last.value(last.first)
    if last is None or value is None:
        return duration_text(run.seconds)
    return (
        f"{called(last.first, last.measure)} {value_text(last.measure, value)}, {duration_text(run.seconds)}"
    )
