"""What a warm round costs in actors of a local Ray beside worker processes: rounds in turn, in one process.

    python benchmarks/ray_engine.py [--rounds 20] [--only W1,W2,cohort] [--out FILE.json]

`W1` is the 2NN of McMahan et al., 10 clients a round with 600 images each, `W2` the CNN; `cohort` has 1,000 of 1,000
clients in every round, 60 images each. Both engines do the same work, to the same bits, which is checked. Ratios are
medians of the ratios of neighbouring rounds: what else the machine does falls on both. Processor seconds are of this
process and all that descend from it, Ray's own processes among them (Linux). Without Ray: pip install "atoll[ray]".
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from peers.networks import network
from workloads import SEED, W1, W2, WARM_UP, Workload, arrays, cores

import atoll

ENGINES = ("processes", "ray")


def federation(work: Workload, engine: str, clients: int, cohort: int, rounds: int) -> atoll.Federation:
    """A workload's images, divided among so many."""
    data = arrays(work)
    x, y = data.x.reshape(clients, -1, 1, 28, 28), data.y.reshape(clients, -1)
    torch.manual_seed(SEED)
    return atoll.Federation(
        network(work),
        atoll.data.from_clients({f"{k:04d}": pair for k, pair in enumerate(zip(x, y, strict=True))}, test=None),
        atoll.FedAvg(lr=work.lr, batch_size=work.batch), rounds=rounds, cohort=cohort, engine=engine, device="cpu",
        eval_every=0,
    )  # fmt: skip


def spent() -> float:
    """Seconds of processors that this process and all its descendants have used."""
    used, children = {}, defaultdict(list)
    for each in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = each.read_text().rpartition(")")[2].split()
            children[int(fields[1])].append(int(each.parent.name))
            used[int(each.parent.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    family, found = [os.getpid()], 0.0
    while family:
        pid = family.pop()
        family += children[pid]
        found += used.get(pid, 0.0)
    return found


def measured(work: Workload, clients: int, cohort: int, rounds: int) -> dict[str, Any]:
    """Seconds of rounds of both engines in turn."""
    both = [federation(work, engine, clients, cohort, rounds + WARM_UP) for engine in ENGINES]
    took: list[list[float]] = [[], []]
    used: list[list[float]] = [[], []]
    try:
        for number in range(rounds + WARM_UP):
            for at in (0, 1) if number % 2 else (1, 0):
                before, start = spent(), time.perf_counter()
                both[at].round()
                took[at].append(time.perf_counter() - start)
                used[at].append(spent() - before)
        same = all(
            torch.equal(a, b) for a, b in zip(*(each.state.params.values() for each in both), strict=True)
        )
    finally:
        for each in reversed(both):
            each.engine.close()
    warm = [[each[WARM_UP:] for each in both] for both in (took, used)]
    ratios, processors = ([there / here for here, there in zip(*each, strict=True)] for each in warm)
    return {
        "clients": clients, "cohort": cohort, "rounds": rounds, "same bits": same,
        "processes, s": round(statistics.median(warm[0][0]), 4), "ray, s": round(statistics.median(warm[0][1]), 4),
        "ray, first round, s": round(took[1][0], 2),
        "ratio": round(statistics.median(ratios), 3),
        "ratio, quartiles": [round(each, 3) for each in statistics.quantiles(ratios, n=4)[::2]],
        "processes, processor s": round(statistics.median(warm[1][0]), 3),
        "ray, processor s": round(statistics.median(warm[1][1]), 3),
        "ratio of processor seconds": round(statistics.median(processors), 3),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", default="W1,W2,cohort")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    cases = {"W1": (W1, W1.clients, W1.cohort), "W2": (W2, W2.clients, W2.cohort), "cohort": (W1, 1000, 1000)}
    found: dict[str, Any] = {"machine": f"{cores()} cores, {platform.machine()}", "torch": torch.__version__}
    for name in given.only.split(","):
        found[name] = measured(*cases[name], given.rounds)
        print(name, json.dumps(found[name]), flush=True)
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
