"""What writing a run down costs: W1 with a run folder and without one, in turn, in one process.

    python benchmarks/overhead.py [--pairs 6] [--rounds 42]

The folder gets every event, the CSV reader, and a checkpoint every ten rounds. Time is taken from the end of the
second round to the end of the last but one, so that the start of a run and its report are left out; they are
printed beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from atoll_bench import network
from workloads import SEED, W1, WARM_UP, arrays

import atoll


class Clock(atoll.Callback):
    """When each round ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_round_end(self, federation: atoll.Federation, record: atoll.Round) -> None:
        self.ends.append(time.perf_counter())


def measure(data: atoll.FederatedData, rounds: int, runs: Path | None, engine: str) -> tuple[float, float]:
    """(seconds a round, seconds before and after the rounds that are timed)."""
    torch.manual_seed(SEED)
    clock = Clock()
    method = atoll.FedAvg(lr=W1.lr, batch_size=W1.batch, epochs=W1.epochs)
    federation = atoll.Federation(
        network(W1), data, method, rounds=rounds, cohort=W1.cohort, engine=engine, eval_every=0, runs=runs,
        callbacks=[clock],
    )  # fmt: skip
    start = time.perf_counter()
    federation.fit()
    whole = time.perf_counter() - start
    timed = clock.ends[-2] - clock.ends[WARM_UP - 1]
    return timed / (rounds - 1 - WARM_UP), whole - timed


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=43)
    parser.add_argument("--engine", default="batched")
    given = parser.parse_args()
    source = arrays(W1)
    clients = {f"{k:03d}": (x, y) for k, (x, y) in enumerate(zip(source.x, source.y, strict=True))}
    data = atoll.data.from_clients(clients)
    plain, kept, around = [], [], []
    with tempfile.TemporaryDirectory() as place:
        measure(data, 5, None, given.engine)
        for _ in range(given.pairs):
            bare, without = measure(data, given.rounds, None, given.engine)
            written, with_folder = measure(data, given.rounds, Path(place), given.engine)
            plain.append(bare)
            kept.append(written)
            around.append(with_folder - without)
    ratios = [b / a for a, b in zip(plain, kept, strict=True)]
    found = {
        "workload": "W1",
        "engine": given.engine,
        "pairs": given.pairs,
        "seconds_a_round_without": round(statistics.median(plain), 5),
        "seconds_a_round_with": round(statistics.median(kept), 5),
        "overhead_percent": round(100 * (statistics.median(ratios) - 1), 2),
        "overhead_of_each_pair": [round(100 * (ratio - 1), 2) for ratio in ratios],
        "seconds_at_start_and_end": round(statistics.median(around), 3),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
