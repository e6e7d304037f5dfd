"""What several workers win, and what `atoll train` costs beside DistributedDataParallel written by hand.

    python benchmarks/workers.py [--repeat 3] [--write]

Pairs in turn: `atoll.train` with two workers beside the same steps by hand (the same module, batches, SGD and torch's
DDP in two forked processes); and two workers beside one. MNIST, steps a second without the first report, medians.
`--write` stores benchmarks/results/workers.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

import atoll
from atoll.models import build

WORKERS = 2
NETWORKS = {"2nn": (64, 400), "cnn": (256, 24)}
"""Model: samples in a step, and steps."""


def by_hand(model: str, data: Any, batch: int, steps: int) -> float:
    """Steps a second of two processes with DDP."""
    context = get_context("fork")
    with tempfile.TemporaryDirectory() as room:
        found = context.Queue()
        work = [
            context.Process(target=_worker, args=(rank, model, data, batch, steps, room, found))
            for rank in range(WORKERS)
        ]
        for each in work:
            each.start()
        seconds = max(found.get(timeout=120) for _ in work)
        for each in work:
            each.join()
    return (steps - steps // 4) / seconds


def _worker(rank: int, model: str, data: Any, batch: int, steps: int, room: str, found: Any) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = dist.FileStore(f"{room}/meet", WORKERS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORKERS, timeout=timedelta(seconds=60))
    torch.manual_seed(0)
    net = DistributedDataParallel(build(model, (1, 28, 28), 10))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    part, count = batch // WORKERS, data.train.count
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(count, generator=generator)
    began = 0.0
    for step in range(steps):
        if step == steps // 4:
            dist.barrier()
            began = time.perf_counter()
        start = (step * batch) % (count - batch) + rank * part
        rows = order[start : start + part]
        optimizer.zero_grad()
        F.cross_entropy(net(data.train.inputs[rows]), data.train.targets[rows]).backward()
        optimizer.step()
    found.put(time.perf_counter() - began)  # the group ends with the process


def by_atoll(model: str, data: Any, strategy: str, workers: int, batch: int, steps: int) -> float:
    """Steps a second of `atoll.train`, the first quarter left out."""
    run = atoll.train(
        model, data, strategy, workers=workers, batch=batch, steps=steps, every=steps // 4, threads=1, test=None
    )  # fmt: skip
    return float(run.figures["steps_per_second"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    data = atoll.data.load("mnist")
    lines = [
        "| model | batch | by hand, 2 workers | atoll train | ratio of times | one worker | two over one |",
        "|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines))
    for model, (batch, steps) in NETWORKS.items():
        rows = [
            (
                by_hand(model, data, batch, steps),
                by_atoll(model, data, "ddp", WORKERS, batch, steps),
                by_atoll(model, data, "ddp", 1, batch, steps),
            )
            for _ in range(given.repeat)
        ]
        hand, ours, alone = (statistics.median(each) for each in zip(*rows, strict=True))
        ratio = statistics.median(a / b for a, b, _ in rows)
        gain = statistics.median(b / c for _, b, c in rows)
        lines.append(
            f"| {model} | {batch} | {hand:,.1f} /s | {ours:,.1f} /s | {ratio:.3f} | {alone:,.1f} /s | {gain:.2f} |"
        )
        print(lines[-1], flush=True)
    if given.write:
        Path(__file__).with_name("results").joinpath("workers.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
