"""Writes a training down through a session, and takes one up again: the first worker's business."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from multiprocessing import parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from msgspec import UNSET
from safetensors.torch import save_file

from atoll import spec
from atoll.machine import cores, threads
from atoll.rounds.judging import figures, measures, totals
from atoll.runs.events import kinds
from atoll.runs.folder import RunFolder, writing
from atoll.runs.readers import Reader
from atoll.runs.session import Session
from atoll.runs.snapshot import Snapshot
from atoll.tensors import Record

if TYPE_CHECKING:
    from atoll.distributed.play import Job

__all__ = ["Keeper", "Report"]

_BITS = (
    "data", "test", "model", "loss", "strategy", "batch", "accumulate", "optimizer", "lr", "schedule", "clip",
    "precision", "shards", "shares", "seed", "every",
)  # fmt: skip
"""Settings that decide what a step computes, and where a run may stop."""


@dataclass(frozen=True)
class Report:
    """What came of the steps since the last report.

    `steps` are all so far, `samples` those read since, `loss` the mean of the steps, `seconds` without evaluations,
    `figures` what workers were asked for (see `kinds.Work`).
    """

    number: int
    steps: int
    samples: int
    loss: float
    seconds: float
    figures: Mapping[str, Any] = field(default_factory=dict)


class Keeper:
    """Hands what happens in a training to a session.

    Args:
        log: readers of the run's events, beside those that the settings name.
        runs: where run folders go; None keeps nothing.
        tell: is told the run's folder, once it has one.
    """

    def __init__(
        self, job: Job, runs: Path | None, log: list[Reader], tell: Callable[[RunFolder], object]
    ) -> None:
        self.job, self.training, self._tell = job, job.training, tell
        named = [] if self.training.log is None else spec.items(self.training.log, "log")
        self.session = Session(
            runs, log=[*named, *log], checkpoint=self.training.checkpoint, keep=self.training.keep
        )
        self.number = 0
        self.lost = False
        self.reports: list[kinds.Round] = []
        self._evaluation: dict[str, float] = {}
        self._whole: Record | None = None

    # --- facts ------------------------------------------------------------------------------------------------

    def state(self) -> Record:
        """What workers go on from (see `Learner.whole`)."""
        assert self._whole is not None
        return self._whole

    def resume(self, run: str | Path) -> None:
        """Take up a run, or its folder.  Raises ConfigError where it is another one."""
        found, events = self.session.resume(run, self._identity())
        state = found.records["state"]
        self._whole = Record(**state, **found.records["training"])
        self.number = found.round
        self.reports = [_round(each) for each in events if each["event"] == "round"]

    def _identity(self) -> dict[str, Any]:
        job = self.job
        params, buffers = job.task.initial()
        form = [[name, list(t.shape), str(t.dtype)] for part in (params, buffers) for name, t in part.items()]
        found = {key: getattr(self.training, key) for key in _BITS}
        return {**found, **job.labels, "model": form, "samples": job.data.count}

    def opening(self) -> tuple[kinds.Start]:
        """The event that the run begins with."""
        job = self.job
        usual = type(self.training)()
        config = self.training.to_dict() | {"workers": job.workers}
        return (
            kinds.Start(
                method=job.strategy.text,
                data=job.labels["data"],
                model=job.labels["model"],
                seed=self.training.seed,
                rounds=job.reports,
                parameters=sum(p.numel() for p in job.task.module.parameters()),
                measure="accuracy" if "accuracy" in job.task.metrics else "loss",
                metrics=job.task.better,
                device=str(job.device),
                engine=f"{job.workers} worker{'s' if job.workers > 1 else ''}",
                workers=job.workers,
                config=config,
                changed=[key for key, value in config.items() if value != getattr(usual, key)],
            ),
        )

    @contextmanager
    def written(self, whole: Record) -> Iterator[None]:
        """Inside, the training is played and written down."""
        with self.session.written(
            self.opening,
            self._snapshot(whole),
            name=self.job.strategy.name,
            rounds=self.job.reports,
            identity=self._identity(),
            model=self.save,
            repeatable=not self.job.labels.get("custom"),
        ):
            if self.session.folder is not None:
                self._tell(self.session.folder)
            yield

    def _snapshot(self, whole: Record) -> Snapshot:
        self._whole = whole
        state = Record(params=whole.params, buffers=whole.buffers)
        training = Record(optimizer=whole.optimizer, own=whole.own)
        return Snapshot(self.number, {"state": state, "training": training})

    # --- what happens -----------------------------------------------------------------------------------------

    def commit(self, report: Report, whole: Record) -> None:
        """A report counts."""
        self.lost = not math.isfinite(report.loss)
        if self.lost:
            return
        self.number = report.number
        self._evaluation = self._judged(whole)
        given = {name: value for name, value in report.figures.items() if name in _FIGURES}
        event = kinds.Round(
            round=report.number,
            loss=report.loss,
            seconds=round(report.seconds, 6),
            bytes_up=int(report.figures.get("bytes", 0)) * self.job.workers,
            evaluation=kinds.Evaluation(overall=self._evaluation) if self._evaluation else None,
            work=kinds.Work(steps=report.steps, samples=report.samples, **given),
        )
        self.reports.append(event)
        self.session.commit(lambda: event, self._snapshot(whole), last=report.steps == self.job.steps)

    def _judged(self, whole: Record) -> dict[str, float]:
        job = self.job
        if job.test is None:
            return {}
        alone = job.workers == 1 and parent_process() is None  # OpenMP's threads do not survive a fork
        with threads(cores() if alone else torch.get_num_threads()):
            found = measures(job.task, job.device, whole.params, whole.buffers, job.test)
            return figures(job.task, [(job.test.count, totals(job.task, found))])

    def end(self) -> None:
        """All steps are done."""
        self.session.end(kinds.Result(reason="rounds", **self.result()))

    def result(self) -> dict[str, Any]:
        """What the training came to, as plain values."""
        job, done = self.job, self.reports
        works = [each.work for each in done if each.work is not UNSET]
        timed = done[1:] if len(done) > 1 else done
        first = works[0].steps if len(works) > 1 else 0
        seconds = sum(each.seconds for each in timed)
        steps = works[-1].steps if works else 0
        last = self._evaluation or {}
        waits = [w.waiting for w in works if w.waiting is not UNSET]
        stale = [w.staleness for w in works if w.staleness is not UNSET and w.staleness is not None]
        counts = [w.stale for w in works if w.stale is not UNSET]
        return {
            "method": job.strategy.text,
            "data": job.labels["data"],
            "engine": f"{job.workers} worker{'s' if job.workers > 1 else ''}",
            "rounds": len(done),
            "seconds": round(self.session.seconds, 4),
            "accuracy": last.get("accuracy"),
            "loss": last.get("loss", done[-1].loss if done else None),
            "metrics": {name: value for name, value in last.items() if name not in ("accuracy", "loss")},
            "workers": job.workers,
            "steps": steps,
            "steps_per_second": round((steps - first) / seconds, 3) if seconds else 0.0,
            "bytes": sum(w.bytes for w in works),
            "memory": max((w.memory for w in works), default=0.0),
            **({"waiting": sum(waits) / max(1e-9, sum(each.seconds for each in done))} if waits else {}),
            **({"staleness": sum(stale) / len(stale)} if stale else {}),
            **({"stale": _summed(counts)} if counts else {}),
            **({"bubble": works[-1].bubble} if works and works[-1].bubble is not UNSET else {}),
        }

    def save(self, path: Path) -> None:
        """Write the model as safetensors."""
        whole = self.state()
        with writing(path, "the model"):
            save_file({**whole.params, **whole.buffers}, path)


_FIGURES = ("bytes", "waiting", "memory", "staleness", "stale", "bubble")


def _summed(counts: Sequence[Sequence[int]]) -> list[int]:
    """Histograms of unequal lengths together."""
    return [sum(column) for column in zip_longest(*counts, fillvalue=0)]


def _round(event: Mapping[str, Any]) -> kinds.Round:
    """A report of an earlier start, as far as results need it."""
    work = event.get("work")
    return kinds.Round(
        round=event["round"],
        loss=event.get("loss"),
        seconds=event["seconds"],
        work=UNSET if work is None else kinds.Work(**work),
    )
