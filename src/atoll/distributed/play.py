"""What each worker does: steps, reports, evaluations; and the first one writes the run down."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from atoll import seeds
from atoll.data import Samples
from atoll.distributed.keeping import Keeper, Report
from atoll.distributed.learner import Context, Learner
from atoll.distributed.links import Links
from atoll.distributed.reading import Reading
from atoll.distributed.settings import Training
from atoll.distributed.strategy import Strategy
from atoll.engines.devices import Resident
from atoll.errors import DivergedError
from atoll.machine import threads
from atoll.optimizers import optimizer
from atoll.task import Task
from atoll.tensors import Record, map_leaves

__all__ = ["Job", "context_of", "draw", "joined", "play", "threads_of"]


@dataclass
class Job:
    """A training, ready to be played: its settings, and what they stand for.

    `reading` says who reads what when, by the number of the copy of the model; `steps` how many steps there are, and
    `every` how many between two reports.
    """

    training: Training
    strategy: Strategy
    task: Task
    data: Samples
    test: Samples | None
    reading: Reading
    workers: int
    device: torch.device
    steps: int
    every: int
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def reports(self) -> int:
        """How many there are in all."""
        return -(-self.steps // self.every)


@contextmanager
def joined(rank: int, workers: int, backend: str, timeout: float, place: Path | None) -> Iterator[None]:
    """Inside, this process is one of a group; of those that torchrun has started where `place` is None."""
    store: Any = None
    if place is not None:
        store = dist.HashStore() if workers == 1 else dist.FileStore(str(place), workers)  # type: ignore[attr-defined]
    given: dict[str, Any] = {} if store is None else {"store": store, "rank": rank, "world_size": workers}
    hook = sys.excepthook
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout), **given)
    sys.excepthook = hook  # torch's writes "[rank0]" before every line of every traceback from now on
    try:
        yield
    finally:
        # Forked workers keep their group until they end: taking one apart, with its file, can wait for ever.
        if workers == 1 or (place is None and sys.exc_info()[0] is None):
            dist.destroy_process_group()


def _groups(job: Job, rank: int, links: Links) -> tuple[Links, Links | None]:
    """`Context.beside` and `Context.within`; all call it."""
    degree, wait = job.strategy.degree, timedelta(seconds=job.training.timeout)
    if degree == 1:
        return links, None
    everyone = range(job.workers)
    beside = [dist.new_group(list(everyone[at::degree]), wait) for at in range(degree)]
    within = [dist.new_group(list(everyone[at : at + degree]), wait) for at in range(0, job.workers, degree)]
    return Links(beside[rank % degree]), Links(within[rank // degree])


def threads_of(job: Job) -> int:
    """Threads of a worker."""
    return job.training.threads or max(1, torch.get_num_threads() // job.workers)


def context_of(job: Job, links: Links, beside: Links, within: Links | None = None) -> Context:
    """What a worker of a training has to know, among these others."""
    training = job.training
    precision = None if training.precision == "float32" else torch.bfloat16
    # Few samples lie where they are read; what would take an eighth of a GPU is copied batch by batch.
    data = Resident(job.device).within(job.data) if job.device.type == "cuda" else job.data
    return Context(
        job.task, data, job.device, optimizer(training.optimizer), links, beside, training.seed,
        training.clip, training.accumulate, precision, within,
    )  # fmt: skip


def play(job: Job, rank: int, keeper: Keeper | None) -> None:
    """All steps of a worker. `keeper` is the first worker's, who writes down what comes of it."""
    with threads(threads_of(job)):
        links = Links()
        context = context_of(job, links, *_groups(job, rank, links))
        learner = job.strategy.learner(context)
        start = links.told(None if keeper is None else Record(at=keeper.number)).at
        whole = learner.whole() if not start else None if keeper is None else keeper.state()
        whole = links.told(whole)  # everybody begins with the first worker's model
        whole = whole.replace(own=map_leaves(partial(_there, job.device), whole.own))
        learner.take(whole)
        try:
            if keeper is None:
                _steps(job, learner, context, rank, start, None)
            else:
                with keeper.written(whole):
                    _steps(job, learner, context, rank, start, keeper)
                    keeper.end()
        finally:
            learner.close()


def _there(device: torch.device, value: Any) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value


def _steps(
    job: Job, learner: Learner, context: Context, rank: int, start: int, keeper: Keeper | None
) -> None:
    links, training = context.links, job.training
    replica = rank // job.strategy.degree
    for report in range(start + 1, job.reports + 1):
        began, before = time.perf_counter(), _spent(context)
        first, last = (report - 1) * job.every, min(report * job.every, job.steps)
        loss, samples = torch.zeros((), dtype=torch.float64, device=job.device), 0
        for step in range(first, last):
            share = job.reading.share(step, replica)
            draw(job, step, replica)
            loss += learner.step(step, share, training.lr * training.factor(step))
            samples += share.count
        seconds = time.perf_counter() - began
        spent = {name: value - before[name] for name, value in _spent(context).items()}
        if not learner.waits:
            del spent["waiting"]
        figures = _pooled(context, {**spent, **learner.figures()}, float(loss) / (last - first))
        whole = learner.whole()
        if keeper is not None:
            assert whole is not None
            keeper.commit(Report(report, last, samples, figures.pop("loss"), seconds, figures), whole)
        told = links.told(None if keeper is None else Record(lost=int(keeper.lost)))
        if told.lost:
            raise DivergedError(
                f"the loss is not finite after step {last}", hint="take a lower lr, or clip=1.0"
            )


def draw(job: Job, step: int, replica: int) -> None:
    """What a step draws (dropout) follows from its address: a run that goes on draws the same."""
    seed = seeds.address(job.training.seed, "train.draws", step, replica)
    torch.default_generator.manual_seed(seed)
    if job.device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _spent(context: Context) -> dict[str, float]:
    """Bytes that this worker has sent, and seconds that it has waited for others."""
    known = (context.links, context.beside, context.within)
    every = {id(each): each for each in known if each is not None}.values()
    return {"bytes": sum(each.nbytes for each in every), "waiting": sum(each.seconds for each in every)}


def _pooled(context: Context, figures: dict[str, float], loss: float) -> dict[str, float]:
    """The workers' figures together: the loss is summed, of all else the largest counts."""
    figures["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    total = torch.tensor([loss], dtype=torch.float64, device=context.device)
    most = torch.tensor(list(figures.values()), dtype=torch.float64, device=context.device)
    dist.all_reduce(total)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return {"loss": float(total), **dict(zip(figures, most.tolist(), strict=True))}
