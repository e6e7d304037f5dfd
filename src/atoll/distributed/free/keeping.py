"""Trainings whose workers go their own ways: which processes there are, and what each does."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from atoll.distributed.crew import Crew
from atoll.distributed.free.common import Common
from atoll.distributed.free.servers import Servers
from atoll.distributed.keeping import Keeper, Report
from atoll.distributed.learner import Replica
from atoll.distributed.links import Solo
from atoll.distributed.play import Job, context_of, threads_of
from atoll.distributed.strategies.server import ParameterServer
from atoll.distributed.strategy import Free
from atoll.errors import ConfigError, DivergedError
from atoll.machine import threads
from atoll.optimizers import optimizer

__all__ = ["check", "run"]


def check(job: Job) -> None:
    """Raise ConfigError where a training of free workers cannot be played."""
    training, strategy = job.training, job.strategy
    assert isinstance(strategy, Free)
    if job.device.type != "cpu":
        raise ConfigError(f"strategy = {strategy.text!r} works on the CPU", hint="set device=cpu")
    if "RANK" in os.environ:
        raise ConfigError(
            f"strategy = {strategy.text!r} starts its processes itself, and torchrun has started this one",
            hint="leave torchrun out: atoll train --workers N",
        )
    strategy.admit(optimizer(training.optimizer), training.clip)
    size = _replica(job).size
    if strategy.servers > size:
        raise ConfigError(
            f"strategy = {strategy.text!r}: {strategy.servers} servers divide {size} parameters",
            hint="take fewer servers",
        )


def _replica(job: Job, rank: int = 0) -> Replica:
    assert isinstance(job.strategy, Free)
    links = Solo(rank)
    return job.strategy.learner(context_of(job, links, links))


def run(job: Job, notes: Path, keeper: Callable[[], Keeper]) -> None:
    """Play it: process 0 keeps the run, then come the workers, then the servers, if there are any."""
    strategy, workers = job.strategy, job.workers
    assert isinstance(strategy, Free)
    count = threads_of(job)
    with threads(1):
        replica = _replica(job)
        scheme = (
            Servers(job, strategy, replica, notes)
            if isinstance(strategy, ParameterServer)
            else Common(job, replica)
        )

    def work(number: int, attempt: int) -> None:
        over = notes / f"over-{attempt}"
        if number == 0:
            with threads(1):
                _keep(job, scheme, keeper(), notes, attempt)
        elif number <= workers:
            try:
                with threads(count):
                    scheme.work(_replica(job, number - 1), number - 1, attempt)
            except ConnectionError:
                if not over.exists():  # nobody is there for one who comes when it is over
                    raise
        else:
            assert isinstance(scheme, Servers)
            with threads(1):
                scheme.serve(number - 1 - workers, attempt)

    def called(number: int) -> str:
        if number == 0:
            return "the process that keeps the run"
        if number <= workers:
            return f"worker {number - 1} of {workers}"
        return f"server {number - 1 - workers} of {strategy.servers}"

    Crew(1 + workers + strategy.servers, work, notes, lambda number: 0 < number <= workers, called).run(
        job.training.restarts
    )


def _keep(job: Job, scheme: Servers | Common, keeper: Keeper, notes: Path, attempt: int) -> None:
    """Write the run down, report by report."""
    replica = _replica(job)
    if keeper.number:
        replica.take(keeper.state())
    whole = replica.whole()
    assert whole is not None
    with keeper.written(whole):
        scheme.begin(replica, min(keeper.number * job.every, job.steps), attempt)
        for report in range(keeper.number + 1, job.reports + 1):
            last = min(report * job.every, job.steps)
            figures = dict(scheme.at(replica, last))
            whole = replica.whole()
            assert whole is not None
            loss, samples, seconds = (figures.pop(name) for name in ("loss", "samples", "seconds"))
            keeper.commit(Report(report, last, int(samples), loss, seconds, figures), whole)
            if keeper.lost:
                raise DivergedError(
                    f"the loss is not finite after step {last}", hint="take a lower lr, or clip=1.0"
                )
        keeper.end()
    keeper.save(notes / "model.safetensors")
    (notes / "result.json").write_text(json.dumps(keeper.result()))
    (notes / f"over-{attempt}").touch()
    scheme.end()
