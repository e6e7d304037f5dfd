"""The work that every system does: its sizes, its arrays, and the one line of JSON that each reports.

NumPy only, so that the environment of every peer can import it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SEED = 2017
WARM_UP = 2


@dataclass(frozen=True)
class Workload:
    """Federated averaging on MNIST-like images, as in McMahan et al. (AISTATS 2017).

    `samples` is the number of images of each client, `parameters` the size that a peer's network must have.
    """

    name: str
    network: str
    samples: int
    lr: float
    parameters: int
    clients: int = 100
    cohort: int = 10
    batch: int = 10
    epochs: int = 1

    @property
    def steps(self) -> int:
        """Steps of one client in one round."""
        return self.epochs * -(-self.samples // self.batch)


W1 = Workload("W1", network="2nn", samples=600, lr=0.1, parameters=199_210)
W2 = Workload("W2", network="cnn", samples=100, lr=0.05, parameters=1_663_370)
WORKLOADS = {work.name: work for work in (W1, W2)}


@dataclass(frozen=True)
class Arrays:
    """Images in [0, 1] as float32 and labels as int64.

    Attributes:
        x: Training images, [clients, samples, 1, 28, 28].
        y: Their labels, [clients, samples].
        x_test: Test images, [10000, 1, 28, 28].
        y_test: Their labels, [10000].
        source: "mnist", or "synthetic" where `ATOLL_DATA` is not set.
    """

    x: NDArray[np.float32]
    y: NDArray[np.int64]
    x_test: NDArray[np.float32]
    y_test: NDArray[np.int64]
    source: str


def arrays(work: Workload) -> Arrays:
    """The same arrays for every system: a fixed permutation of the training set, cut into equal clients."""
    root = os.environ.get("ATOLL_DATA")
    images, labels, x_test, y_test = _mnist(Path(root)) if root else _synthetic()
    chosen = np.random.default_rng(SEED).permutation(len(images))[: work.clients * work.samples]
    shape = (work.clients, work.samples)
    return Arrays(
        x=_scaled(images[chosen]).reshape(*shape, 1, 28, 28),
        y=labels[chosen].astype(np.int64).reshape(shape),
        x_test=_scaled(x_test)[:, None],
        y_test=y_test.astype(np.int64),
        source="mnist" if root else "synthetic",
    )


def _scaled(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return images.astype(np.float32) / np.float32(255)


def _mnist(root: Path) -> tuple[NDArray[Any], ...]:
    with np.load(root / "mnist" / "mnist.npz") as stored:
        return tuple(stored[key] for key in ("x_train", "y_train", "x_test", "y_test"))


def _synthetic() -> tuple[NDArray[Any], ...]:
    """Ten coarse random prototypes under noise: as large as MNIST and easier to learn."""
    rng = np.random.default_rng(SEED + 1)
    coarse = rng.integers(0, 256, (10, 7, 7))
    prototypes = coarse.repeat(4, axis=1).repeat(4, axis=2).astype(np.int16)

    def draw(count: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        labels = rng.integers(0, 10, count)
        noise = rng.integers(-128, 129, (count, 28, 28), dtype=np.int16)
        return np.clip(prototypes[labels] + noise, 0, 255).astype(np.uint8), labels

    return *draw(60_000), *draw(10_000)


@dataclass(frozen=True)
class Options:
    """What the command line of a peer says."""

    work: Workload
    rounds: int
    threads: int


def options(only: Sequence[str] = tuple(WORKLOADS), threads: int | None = None) -> Options:
    """Read `WORKLOAD [--rounds N] [--threads N]`; `threads` defaults to the cores this process may use."""
    parser = argparse.ArgumentParser()
    parser.add_argument("workload", choices=list(only))
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=threads or cores())
    given = parser.parse_args()
    if given.rounds <= WARM_UP:
        parser.error(f"--rounds: at least {WARM_UP + 1}, because {WARM_UP} rounds are warm-up")
    return Options(WORKLOADS[given.workload], given.rounds, given.threads)


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Stopwatch:
    """Seconds of each round: call `lap` when a round, with everything it started, is complete."""

    def __init__(self) -> None:
        self.rounds: list[float] = []
        self.busy: list[float] = []
        """Seconds of a processor that this process, all its threads, used in each round."""
        self.seconds_to_first_round = 0.0
        self._last, self._used = time.perf_counter(), time.process_time()

    def start(self) -> None:
        """The first round begins now."""
        self._last, self._used = time.perf_counter(), time.process_time()

    def lap(self) -> None:
        now, used = time.perf_counter(), time.process_time()
        self.rounds.append(now - self._last)
        self.busy.append(used - self._used)
        self._last, self._used = now, used
        if len(self.rounds) == 1:
            self.seconds_to_first_round = process_age()


def process_age() -> float:
    """Seconds since this process began (imports and data included), or 0 where the system does not tell."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        uptime = float(Path("/proc/uptime").read_text().split()[0])
    except OSError:
        return 0.0
    return uptime - int(fields[19]) / os.sysconf("SC_CLK_TCK")


def peak_mib(who: int) -> float:
    """Largest resident memory so far, in MiB, of this process or of the largest child that has ended."""
    return resource.getrusage(who).ru_maxrss / (1024 * 1024 if sys.platform == "darwin" else 1024)


def report(
    system: str,
    version: str,
    workload: str,
    watch: Stopwatch,
    *,
    threads: int,
    processes: int = 1,
    accuracy: float | None = None,
    **more: Any,
) -> None:
    """Print the result as one line of JSON."""
    line = {
        "system": system,
        "version": version,
        "workload": workload,
        "threads": threads,
        "processes": processes,
        "seconds_per_round": statistics.median(watch.rounds[WARM_UP:]),
        "rounds": watch.rounds,
        "cpu_seconds_per_round": statistics.median(watch.busy[WARM_UP:]) if watch.busy else None,
        "first_round_seconds": watch.rounds[0],
        "seconds_to_first_round": watch.seconds_to_first_round,
        "accuracy_after": accuracy,
        "peak_mib": peak_mib(resource.RUSAGE_SELF),
        "peak_child_mib": peak_mib(resource.RUSAGE_CHILDREN),
        **more,
    }
    print(json.dumps(line), flush=True)
