"""What a round costs beside its work: a method that does nothing, ten clients a round of 10,000.

    OMP_NUM_THREADS=1 python benchmarks/idle.py [--rounds 1000] [--turns 5]

Seconds of the processor for so many rounds in the loop engine, nothing written down: without and with the virtual
clock, of a method whose two halves are empty, and of FedAvg without a step, whose clients still make a difference of
models that is screened, probed and averaged. The four take turns; each figure is the least of the turns.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

import atoll
from atoll.contract import ClientData, Method, Plan, Population, Replies, Reply, Work
from atoll.methods.fedavg import FedAvg
from atoll.task import Task
from atoll.tensors import Record

CLIENTS, COHORT = 10_000, 10


@dataclass(frozen=True)
class Nothing(Method):
    """Sends the model out, and takes nothing back."""

    def setup(self, task: Task, population: Population) -> Record:
        params, buffers = task.initial()
        return Record(params=params, buffers=buffers)

    def broadcast(self, state: Record, cohort: Sequence[int]) -> Work:
        return Work(Record(params=state.params, buffers=state.buffers))

    def update(self, state: Record, replies: Replies) -> Record:
        return state

    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        return Record()

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        return Reply(Record(), data.count, Record()), Record()


@dataclass(frozen=True, kw_only=True)
class Idle(FedAvg):
    """FedAvg whose clients take no step."""

    def plan(self) -> Plan:
        return Plan()


METHODS = {"nothing": Nothing(), "FedAvg without a step": Idle()}


def population() -> atoll.FederatedData:
    x, y = torch.zeros(CLIENTS, 2), torch.arange(CLIENTS) % 2
    return atoll.data.from_clients({k: (x[k : k + 1], y[k : k + 1]) for k in range(CLIENTS)}, test=None)


def spent(method: Method, data: atoll.FederatedData, rounds: int, devices: str | None) -> float:
    """Seconds of the processor."""
    federation = atoll.Federation(
        lambda: nn.Linear(2, 2), data, method, rounds=rounds, cohort=COHORT, engine="loop", eval_every=0,
        devices=devices,
    )  # fmt: skip
    since = time.process_time()
    federation.fit(progress=False)
    return time.process_time() - since


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--turns", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    data, least = population(), dict[str, float]()
    for _ in range(given.turns):
        for name, method in METHODS.items():
            for devices in (None, "lognormal:1.5"):
                key = f"{name}, {'virtual clock' if devices else 'no clock'}"
                least[key] = min(least.get(key, float("inf")), spent(method, data, given.rounds, devices))
    for key, seconds in least.items():
        print(f"{key}: {seconds:.2f} CPU s")


if __name__ == "__main__":
    main()
