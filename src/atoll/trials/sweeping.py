"""Sweeps: every point of a grid as a run of its own, several at once, resumable at any moment."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from atoll.errors import ConfigError, RunError, Terminated
from atoll.machine import cores
from atoll.runs.compare import Comparison
from atoll.runs.events import follow
from atoll.runs.folder import RunFolder, default_place, writing
from atoll.trials.compared import check_target
from atoll.trials.points import Point, check, digest, fingerprint, points
from atoll.trials.trial import Trial

__all__ = ["Sweep", "prepare", "sweep"]

log = logging.getLogger("atoll.trials")
_PAUSE = 0.2  # seconds between looks at the runs
_AT_START = {"config.toml", "events.jsonl", "lock"}  # what a run folder may hold before its run has begun


class Sweep:
    """Points and their runs, in one directory.

    Args:
        points: what to run.
        folder: the sweep's directory. Runs that it already has are taken for their points: what is finished is
            skipped, what was interrupted goes on.
        jobs: how many runs at once; by default as many as there are cores for.
        target: see `sweep`.
    """

    def __init__(self, points: Sequence[Point], folder: Path, jobs: int | None, target: str | None) -> None:
        self.folder = RunFolder(folder)
        self.target = target
        workers = max((point.experiment.workers or 1 for point in points), default=1)
        self.jobs = min(jobs or max(1, cores() // workers), len(points))
        self.trials = [Trial(point, folder) for point in points]
        self._by_key = {trial.point.key: trial for trial in self.trials}
        self._known: set[str] = set()

    def play(self, watch: Callable[[Sweep], None]) -> Comparison:
        """Run what is not finished, calling `watch` now and then, and compare all that could be run.

        A failed point does not keep the others from going on; going on with a sweep tries it again, unless it
        diverged. On Ctrl-C and SIGTERM the runs are stopped in order. Raises RunError if no point was run to its
        end, or another process plays this sweep.
        """
        with writing(self.folder.path, "the sweep in"):
            (self.folder.path / "points").mkdir(parents=True, exist_ok=True)
        self.folder.hold()
        try:
            self._find()
            queue = self._queue()
            self._write()
            while queue or any(trial.process is not None for trial in self.trials):
                self._step(queue)
                watch(self)
                time.sleep(_PAUSE)
            self._tidy()
            return self._compare()
        except BaseException as error:
            self._stop(signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT)
            raise
        finally:
            watch(self)
            self._write()
            self.folder.release()

    def _queue(self) -> list[Trial]:
        """What is to be run, the interrupted ones first; a diverged run would only diverge again."""
        todo = []
        for trial in self.trials:
            if (lock := trial.claimed()) is not None:
                lock.close()
            trial.look()
            if trial.hopeless:
                trial.message = str((trial.ended or {}).get("message"))
            elif not trial.finished:
                todo.append(trial)
        return sorted(todo, key=lambda trial: trial.folder is None)

    def _step(self, queue: list[Trial]) -> None:
        """One look at everything: what has ended, what can begin."""
        self._find()
        before = [trial.status for trial in self.trials]
        for trial in self.trials:
            trial.look()
            trial.reap()
        busy = sum(trial.status == "running" for trial in self.trials)
        for trial in list(queue):
            if busy >= self.jobs and not trial.elsewhere:
                continue
            busy -= trial.elsewhere
            lock = trial.claimed()
            if lock is None:  # an earlier sweep was killed, but this run of it was not: it is waited for
                busy += 1
                continue
            self._find()  # once more: now nobody else can begin it
            trial.look()
            queue.remove(trial)
            if trial.finished:
                lock.close()
            else:
                trial.start(lock, max(1, cores() // self.jobs))
                busy += 1
        if [trial.status for trial in self.trials] != before:
            self._write()

    def _find(self) -> None:
        """Give the run folders that have appeared to their points."""
        for path in sorted(self.folder.path.iterdir()):
            if path.name in self._known or not (path / "events.jsonl").is_file():
                continue
            start = next((event for event, _ in follow(path / "events.jsonl")), None)
            if start is None or start["event"] != "start":
                continue  # it is still being written
            self._known.add(path.name)
            trial = self._by_key.get(fingerprint(start.get("config") or {}))
            if trial is not None and trial.folder is None:
                trial.folder = RunFolder(path)

    def _stop(self, number: int) -> None:
        """End the runs in order: they write a checkpoint first. A second Ctrl-C kills them."""
        for trial in self.trials:
            trial.stop(number)
        try:
            while any(trial.process is not None for trial in self.trials):
                self._find()
                for trial in self.trials:
                    trial.reap()
                time.sleep(_PAUSE / 4)
        except (KeyboardInterrupt, Terminated):
            for trial in self.trials:
                trial.stop(signal.SIGKILL)

    def _tidy(self) -> None:
        """Remove folders of runs that were killed before they began."""
        for path in self.folder.path.iterdir():
            begun = path.name in self._known or not path.is_dir() or RunFolder(path).held()
            if begun or path.name == "points" or not {each.name for each in path.iterdir()} <= _AT_START:
                continue
            if not any(follow(path / "events.jsonl") if (path / "events.jsonl").exists() else ()):
                shutil.rmtree(path, ignore_errors=True)

    def _compare(self) -> Comparison:
        done = [trial for trial in self.trials if trial.status == "finished"]
        lost = [trial for trial in self.trials if trial.status == "failed"]
        failed = [f"{trial.point.label}: {trial.message}" for trial in lost]
        if not done:
            message = f"all {len(failed)} points failed; the first one: {failed[0]}"
            raise RunError(message, hint=lost[0].hint)
        folders = [trial.folder for trial in done if trial.folder is not None]
        comparison = dataclasses.replace(Comparison.of(folders, self.target), failed=failed)
        try:
            comparison.report(self.folder.path / "comparison.html")
            self.folder.write("comparison.csv", comparison.csv().encode())
        except Exception as error:  # the comparison is worth more than its files
            log.warning("comparison.html, comparison.csv: %s: %s", type(error).__name__, error)
        return comparison

    def _write(self) -> None:
        """sweep.json: the points, and which run is which."""
        found = {
            "schema": 1,
            "target": self.target,
            "points": [
                {
                    "point": trial.point.number,
                    "changes": trial.point.changes,
                    "seed": trial.point.experiment.seed,
                    "run": trial.folder.name if trial.folder is not None else None,
                    "status": trial.status,
                    "message": trial.message or None,
                }
                for trial in self.trials
            ],
        }
        self.folder.write("sweep.json", msgspec.json.format(msgspec.json.encode(found)) + b"\n")


def prepare(
    file: str | Path | None = None,
    sets: Sequence[str] = (),
    grid: Mapping[str, Sequence[Any]] | None = None,
    *,
    seeds: int = 1,
    name: str | None = None,
    runs: str | Path | None = None,
    jobs: int | None = None,
    target: str | None = None,
    baselines: bool = False,
    **keywords: Any,
) -> Sweep:
    """The sweep that `sweep` plays, with everything checked."""
    found = points(file, sets, grid or {}, seeds, keywords, baselines)
    if target is not None:
        check_target(target, None)
    measured = check(found)
    if target is not None:
        check_target(target, measured)
    place = default_place() if runs is None else Path(runs)
    if name is not None and Path(name).name != name:
        raise ConfigError(
            f"{name!r} is no name for a sweep", hint="a word without slashes; --runs says where it goes"
        )
    return Sweep(found, place / f"sweep-{name or digest(found)}", jobs, target)


def sweep(
    file: str | Path | None = None,
    sets: Sequence[str] = (),
    grid: Mapping[str, Sequence[Any]] | None = None,
    *,
    seeds: int = 1,
    name: str | None = None,
    runs: str | Path | None = None,
    jobs: int | None = None,
    target: str | None = None,
    baselines: bool = False,
    **keywords: Any,
) -> Comparison:
    """Run every combination of some settings, in processes of their own, and compare them.

    The same call again skips what is finished and goes on with what was interrupted.

    Args:
        file, sets, keywords: the settings they have in common, as for `atoll.run`.
        grid: the settings to combine, with their values: ``{"lr": [0.01, 0.1], "mu": [0, 1]}``.
        seeds: how many seeds for each combination: the one of the settings and those after it.
        name: of the sweep, whose directory is ``sweep-NAME``; by default it follows from the settings and the grid.
        runs: where that directory goes: ATOLL_RUNS, or `runs`.
        jobs: runs at once. By default a core each (a run gets one worker unless `workers` is set).
        target: the value whose cost is compared, such as "accuracy:0.9"; the runs do not stop there.
        baselines: run `local`, `fedavg` and `fedavg-ft` too, with those of the settings that they know.

    Where the grid has several methods, each takes the settings that it knows.

    Raises ConfigError before anything runs if any combination is wrong, RunError if all of them fail.
    """
    ready = prepare(
        file, sets, grid,
        seeds=seeds, name=name, runs=runs, jobs=jobs, target=target, baselines=baselines, **keywords,
    )  # fmt: skip
    return ready.play(lambda _: None)
