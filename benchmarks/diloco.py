"""Does a model learn as well from workers that meet every fifty steps?

    python benchmarks/diloco.py [--steps 5000] [--workers 4] [--only "ddp|diloco:50"] [--device cuda:0] [--write]

A byte-level transformer of 0.8 million parameters on tiny Shakespeare: DDP beside DiLoCo, which sends so many times
less, on samples in common and with speaking roles of their own for each worker. Every run has the same batches, inner
AdamW, warm-up and cosine; what a run is held beside is the first, DDP on samples in common. The text is small, and all
of them learn it by heart in the end: what counts is the lowest loss of the run's reports, whose model `keep = "best"`
keeps. `--write` stores benchmarks/results/diloco.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import atoll

RUNS = (
    ("ddp", "shared"),
    ("diloco:50", "shared"),
    ("diloco:100,codec=int4", "shared"),
    ("diloco:50", "natural"),
    ("diloco:100,codec=int4", "natural"),
)


def losses(run: atoll.distributed.Trained) -> list[tuple[float, int]]:
    """The reports' losses, with their numbers."""
    assert run.folder is not None
    events = map(json.loads, (run.folder.path / "events.jsonl").read_text().splitlines())
    return [(e["evaluation"]["overall"]["loss"], e["round"]) for e in events if e["event"] == "round"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--model", default="gpt:4,128,4")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", help="strategies, with | between them")
    parser.add_argument("--shards", help="shared or natural")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    every = max(100, given.steps // 20 // 100 * 100)
    lines = [
        "| strategy | samples | lowest loss | at step | beside ddp | last | bytes a worker | times less | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    base: tuple[float, float] | None = None
    for strategy, shards in RUNS:
        if given.only is not None and strategy not in given.only.split("|"):
            continue
        if given.shards not in (None, shards):
            continue
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as place:
            run = atoll.train(
                given.model, "shakespeare", strategy, workers=given.workers, steps=given.steps, batch=given.batch,
                shards=shards, test=0.05, optimizer="adamw:0.1", lr=given.lr, clip=1.0, threads=given.threads,
                schedule=f"warmup:50 + cosine:{given.steps}", every=every, device=given.device, runs=place,
                checkpoint=0,
            )  # fmt: skip
            loss, number = min(losses(run))
        sent = run.figures["bytes"]
        base = base or (loss, sent)
        lines.append(
            f"| {strategy} | {'in common' if shards == 'shared' else 'by role'} | {loss:.4f} | {number * every} "
            f"| {100 * (loss / base[0] - 1):+.2f} % | {run.loss:.4f} | {sent / 1e6:,.1f} MB "
            f"| {base[1] / sent:.0f} | {time.perf_counter() - began:.0f} |"
        )
        print(lines[-1], flush=True)
    if given.write:
        about = f"{given.model}, {given.workers} workers, {given.steps} steps of {given.batch} texts of 80 symbols.\n\n"
        Path(__file__).with_name("results").joinpath("diloco.md").write_text(about + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
