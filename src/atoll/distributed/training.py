"""`train`: one model, several workers; from Python, from settings, and under torchrun."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from atoll import own, seeds, spec
from atoll.data import Dataset, FederatedData, Samples
from atoll.distributed import placing
from atoll.distributed.crew import Crew
from atoll.distributed.free import keeping as free
from atoll.distributed.keeping import Keeper
from atoll.distributed.play import Job, joined, play
from atoll.distributed.reading import Divided, Fixed, Reading
from atoll.distributed.settings import Training
from atoll.distributed.strategies import parse
from atoll.distributed.strategy import Free, Strategy
from atoll.errors import ConfigError
from atoll.machine import threads
from atoll.modules import ready
from atoll.networks import networks
from atoll.runs.folder import RunFolder, default_place, writing
from atoll.runs.readers import Reader
from atoll.task import Task

__all__ = ["Trained", "prepare", "start", "train"]


@dataclass(repr=False)
class Trained:
    """What a training came to: the model, the figures of the event "result", and the run's folder, if it has one."""

    model: nn.Module
    figures: Mapping[str, Any]
    folder: RunFolder | None = None

    @property
    def accuracy(self) -> float | None:
        """Of the model on the test samples."""
        return self.figures.get("accuracy")

    @property
    def loss(self) -> float | None:
        """Likewise; of the last report's training samples where there is no test."""
        return self.figures.get("loss")

    def save(self, path: str | Path) -> None:
        """Write the model as safetensors.  Raises RunError where it cannot be written."""
        with writing(Path(path), "the model"):
            save_file({name: value.contiguous() for name, value in self.model.state_dict().items()}, path)

    def __repr__(self) -> str:
        found = {key: self.figures.get(key) for key in ("workers", "steps", "loss", "accuracy")}
        told = ", ".join(f"{key} {value:.4g}" for key, value in found.items() if value is not None)
        return f"<Trained {self.figures.get('method')} on {self.figures.get('data')}: {told}>"


def train(
    model: nn.Module | Callable[[], nn.Module] | str | None = None,
    data: Any = None,
    strategy: Strategy | str = "ddp",
    *,
    resume: str | Path | None = None,
    log: list[Reader] | None = None,
    **settings: Any,
) -> Trained:
    """Train one model by several workers: ``atoll.train(model, data, "ddp", workers=2, steps=1000, lr=0.1)``.

    Args:
        model: a module, a function that makes one, or a name (`atoll models`).
        data: a `Dataset`, a pair (inputs [n, ...], targets [n, ...]) of tensors, or a name or file.
        strategy: how (`atoll explain strategy`), a text or a `Strategy`.
        resume: a run to go on with: its folder, its name or "last".
        log: further readers of the run's events.
        settings: see `Training`.

    Raises ConfigError or DataError before a worker is started, RunError where one fails, DivergedError where the loss
    leaves the finite numbers.
    """
    given = dict(settings)
    given.setdefault("runs", None)
    if isinstance(model, str):
        given["model"] = model
    if isinstance(data, str):
        given["data"] = data
    chosen = strategy if isinstance(strategy, Strategy) else parse(strategy)
    training = Training.read(strategy=chosen.text, **given)
    job = prepare(
        training,
        None if isinstance(model, str) else model,
        None if isinstance(data, str) else data,
        chosen,
    )
    return start(job, resume, log or [])


def prepare(training: Training, model: Any = None, data: Any = None, strategy: Strategy | None = None) -> Job:
    """A training with all its parts, checked. A strategy may have settings that its text does not tell."""
    strategy, device = strategy or parse(training.strategy), placing.device_of(training.device)
    dataset = _dataset(training.load() if data is None else data)
    seed = training.seed
    dataset, test = _divided(dataset, training.test, seed)
    samples = dataset.train
    labels = {
        "data": training.data if data is None else dataset.name,
        "model": training.model if model is None else type(model).__name__,
    }
    if model is None:
        model = networks(training.model, dataset.partition("iid", clients=1, test=None))[0]
    else:
        labels["custom"] = "1"
    loss: Any = (
        own.found(training.loss, "loss") if training.loss and own.named(training.loss) else training.loss
    )
    with seeds.scoped(seed):
        made = model if isinstance(model, nn.Module) else model()
        if not isinstance(made, nn.Module):
            raise ConfigError(
                f"model is {model!r}, and neither an nn.Module nor a function that makes one",
                hint="atoll models lists those that go by a name",
            )
        some = samples.take(slice(0, 2))
        task = Task(
            ready(made, some.inputs[:1]),
            loss or ("cross_entropy" if dataset.classes else "mse"),
            training.metrics,
        )
        with threads(1):
            task.check(some.inputs[:1], some.targets[:1], dataset.classes)
    workers = _workers(training, strategy, device)
    strategy.check(workers, task, training.batch)
    reading = _reading(training, dataset, workers // strategy.degree)
    steps, every = _lengths(training, reading, strategy)
    job = Job(training, strategy, task, samples, test, reading, workers, device, steps, every, labels)
    if isinstance(strategy, Free):
        free.check(job)
    return job


def _lengths(training: Training, reading: Reading, strategy: Strategy) -> tuple[int, int]:
    """The steps of the run, and those between two reports."""
    grain = strategy.grain
    if training.steps is not None and training.steps % grain:
        raise ConfigError(
            f"steps = {training.steps} is no multiple of {grain}, and strategy = {strategy.text!r} meets every {grain}",
            hint=f"set steps={-(-training.steps // grain) * grain}",
        )
    wanted = training.steps or max(1, round(training.epochs * reading.steps))
    steps = -(-wanted // grain) * grain
    every = training.every or max(1, -(-steps // 20))
    return steps, min(-(-every // grain) * grain, steps)


def _dataset(data: Any) -> Dataset:
    if isinstance(data, Dataset):
        return data
    if isinstance(data, FederatedData):
        raise ConfigError(
            "the data are clients already, and workers divide one set of samples",
            hint='give the Dataset, and shards="natural" for workers with data of their own',
        )
    if isinstance(data, tuple | list) and len(data) == 2:
        from atoll.data import from_arrays

        return from_arrays(*data)
    raise ConfigError(
        f"data is a {type(data).__name__}", hint="give a Dataset, a pair (inputs, targets), or a name"
    )


def _divided(dataset: Dataset, test: Any, seed: int) -> tuple[Dataset, Samples | None]:
    """The data with the samples to learn from, and those to judge on."""
    if test is None or (test == "auto" and dataset.test is not None):
        return dataset, None if test is None else dataset.test
    count = dataset.train.count
    held = max(1, round(count * (0.2 if test == "auto" else test)))
    if held >= count:
        raise ConfigError(f"{dataset.name} has {count} samples, too few to keep a test", hint="test=none")
    order = seeds.rng(seed, "train.test").permutation(count)
    return dataset.only(np.sort(order[held:])), dataset.train.take(np.sort(order[:held]))


def _workers(training: Training, strategy: Strategy, device: torch.device) -> int:
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:  # torchrun has started them
        started = int(os.environ["WORLD_SIZE"])
        if training.workers not in (None, started):
            raise ConfigError(
                f"workers = {training.workers}, and torchrun has started {started}", hint="leave workers out"
            )
        placing.check(device, int(os.environ.get("LOCAL_WORLD_SIZE", started)), strategy)
        return started
    workers = training.count(placing.gpus() if placing.each_its_own(device) else 0)
    placing.check(device, workers, strategy)
    return workers


def _reading(training: Training, dataset: Dataset, replicas: int) -> Reading:
    weights = training.weights(replicas)
    if training.shards == "shared":
        return Divided(dataset.train.count, training.batch, weights, training.seed)
    by_itself = spec.parse(training.shards, "shards").name in ("natural", "by")
    clients = None if by_itself else replicas
    divided = dataset.partition(training.shards, clients=clients, seed=training.seed, test=None)
    if len(divided) < replicas:
        raise ConfigError(
            f"shards = {training.shards!r} makes {len(divided)} parts, and {replicas} workers need one each",
            hint="take fewer workers",
        )
    rows = [divided.rows(client, "train") for client in range(len(divided))]
    own: list[Any] = [
        np.concatenate([r for r in rows[at::replicas] if r is not None]) for at in range(replicas)
    ]
    for at, each in enumerate(own):
        if not len(each):
            raise ConfigError(f"worker {at} has no samples with shards = {training.shards!r}")
    return Fixed(own, training.batch, weights, training.seed)


def start(job: Job, resume: str | Path | None = None, log: list[Reader] | None = None) -> Trained:
    """Play a training: here, in worker processes, or as one of the processes that torchrun has started."""
    training = job.training
    runs = default_place() if training.runs == "auto" else training.runs
    place = None if runs is None else Path(runs)
    with tempfile.TemporaryDirectory(prefix="atoll-train-") as room:
        notes = Path(room)
        if resume is not None:
            (notes / "folder").write_text(str(RunFolder.find(resume, place).path))

        def work(rank: int, attempt: int) -> None:
            inside = None if "RANK" in os.environ else notes / f"meet-{attempt}"
            here = replace(job, device=placing.mine(job.device, rank))
            with joined(rank, job.workers, placing.backend(job.device), training.timeout, inside):
                keeper = _keeper(here, place, log or [], notes) if rank == 0 else None
                play(here, rank, keeper)
                if keeper is not None:
                    keeper.save(notes / "model.safetensors")
                    (notes / "result.json").write_text(json.dumps(keeper.result()))

        if isinstance(job.strategy, Free):
            free.run(job, notes, lambda: _keeper(job, place, log or [], notes))
        elif "RANK" in os.environ:
            work(int(os.environ["RANK"]), 0)
        elif job.workers == 1 and not training.restarts:
            work(0, 0)
        else:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
            placing.check_forks(job.device)
            Crew(job.workers, work, notes).run(training.restarts)
        return _trained(job, notes)


def _keeper(job: Job, place: Path | None, log: list[Reader], notes: Path) -> Keeper:
    known = notes / "folder"
    keeper = Keeper(job, place, log, lambda folder: known.write_text(str(folder.path)))
    if known.exists():
        keeper.resume(known.read_text())
    return keeper


def _trained(job: Job, notes: Path) -> Trained:
    """What the first worker has written down; at the others under torchrun nothing has been."""
    model = job.task.module
    if not (notes / "result.json").exists():
        return Trained(model, {"method": job.strategy.text, "data": job.labels["data"]})
    state = load_file(notes / "model.safetensors")
    params, buffers = job.task.initial()
    known = notes / "folder"
    return Trained(
        job.task.load(
            type(params)({name: state[name] for name in params}),
            type(buffers)({name: state[name] for name in buffers}),
        ),
        json.loads((notes / "result.json").read_text()),
        RunFolder(known.read_text()) if known.exists() else None,
    )
