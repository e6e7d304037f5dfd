"""Atoll's own measurements, with the same line of JSON as the peers.

    python benchmarks/atoll_bench.py W1 --rounds 12
    python benchmarks/atoll_bench.py population --clients 1000000

`population` asks whether time and memory depend on how many clients exist: a 2NN, a cohort of 100 out of a
lazy population, 20 images a client. Its memory is that of the whole process, libraries included.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peers.networks import accuracy
from torch import nn
from workloads import SEED, W1, WARM_UP, WORKLOADS, Stopwatch, Workload, arrays, cores, process_age, report

import atoll


class Timer(atoll.Callback):
    """Takes each round's seconds, and the age of the process when the first was done."""

    def __init__(self) -> None:
        self.watch = Stopwatch()

    def on_round_end(self, federation: atoll.Federation, record: atoll.Round) -> None:
        if not self.watch.rounds:
            self.watch.seconds_to_first_round = process_age()
        self.watch.rounds.append(record.seconds)


def network(work: Workload) -> nn.Module:
    """The module of a workload, an ordinary one out of Atoll's collection."""
    module = atoll.models.mlp(784, 200, 200, 10) if work.network == "2nn" else atoll.models.cnn()
    count = sum(parameter.numel() for parameter in module.parameters())
    assert count == work.parameters, f"{work.network}: {count} parameters instead of {work.parameters}"
    return module


def compare(work: Workload, rounds: int, engine: str) -> None:
    """A workload that the peers run too."""
    torch.manual_seed(SEED)
    data = arrays(work)
    clients = {f"{k:03d}": (x, y) for k, (x, y) in enumerate(zip(data.x, data.y, strict=True))}
    timer = Timer()
    run = atoll.Federation(
        network(work),
        atoll.data.from_clients(clients, test=None),  # peers hold nothing out either
        atoll.FedAvg(lr=work.lr, batch_size=work.batch, epochs=work.epochs),
        rounds=rounds,
        cohort=work.cohort,
        seed=0,
        engine=engine,
        eval_every=0,
        callbacks=[timer],
    ).fit()
    finish(work.name, timer, run, accuracy=accuracy(run.model, data), data=data.source)


def population(clients: int, rounds: int, engine: str) -> None:
    """A cohort of 100 out of any number of lazy clients."""
    torch.manual_seed(SEED)
    timer = Timer()
    run = atoll.Federation(
        network(W1),
        atoll.data.from_function(Pool().client, clients=clients, classes=10, size=Pool.size),
        atoll.FedAvg(lr=W1.lr, batch_size=W1.batch, epochs=1),
        rounds=rounds,
        cohort=100,
        seed=0,
        engine=engine,
        eval_every=0,
        callbacks=[timer],
    ).fit()
    finish("population", timer, run, data=f"{clients:,} clients")


class Pool:
    """2,000 random images, few enough not to show in the memory, from which every client draws its own 20."""

    size = 20

    def __init__(self) -> None:
        rng = np.random.default_rng(SEED)
        self.x = rng.random((2_000, 1, 28, 28), dtype=np.float32)
        self.y = rng.integers(0, 10, 2_000)

    def client(self, number: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        rows = np.random.default_rng((SEED, number)).integers(0, len(self.y), self.size)
        return self.x[rows], self.y[rows]


def finish(workload: str, timer: Timer, run: atoll.Run, **more: Any) -> None:
    version = f"{atoll.__version__} (torch {torch.__version__})"
    report("Atoll", version, workload, timer.watch, threads=cores(), engine=run.engine, **more)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("workload", choices=[*WORKLOADS, "population"])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--clients", type=int, default=1_000_000, help="size of the population")
    given = parser.parse_args()
    if given.rounds <= WARM_UP:
        parser.error(f"--rounds: at least {WARM_UP + 1}, because {WARM_UP} rounds are warm-up")
    if given.workload == "population":
        population(given.clients, given.rounds, given.engine)
    else:
        compare(WORKLOADS[given.workload], given.rounds, given.engine)


if __name__ == "__main__":
    main()
