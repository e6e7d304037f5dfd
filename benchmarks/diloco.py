"""Does a model learn as well from workers that meet every fifty steps?

    python benchmarks/diloco.py [--steps 600] [--workers 4] [--only ddp,diloco:50] [--write]

A byte-level transformer of 0.8 million parameters on tiny Shakespeare: DDP beside DiLoCo, which sends so many times
less, on samples in common and with speaking roles of their own for each worker. Every run has the same samples in the
same batches, inner AdamW, warm-up and cosine. `--write` stores benchmarks/results/diloco.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import atoll

RUNS = (
    ("ddp", "shared"),
    ("diloco:50", "shared"),
    ("diloco:100,codec=int4", "shared"),
    ("ddp", "natural"),
    ("diloco:50", "natural"),
    ("diloco:100,codec=int4", "natural"),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--model", default="gpt:4,128,4")
    parser.add_argument("--only", help="strategies, with | between them")
    parser.add_argument("--shards", help="shared or natural")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    lines = [
        "| strategy | samples | validation loss | beside ddp | bytes a worker | times less |",
        "|---|---|---|---|---|---|",
    ]
    print("\n".join(lines))
    base: dict[str, atoll.Trained] = {}
    for strategy, shards in RUNS:
        if given.only is not None and strategy not in given.only.split("|"):
            continue
        if given.shards not in (None, shards):
            continue
        run = atoll.train(
            given.model, "shakespeare", strategy, workers=given.workers, steps=given.steps, batch=given.batch,
            shards=shards, test=0.05, optimizer="adamw:0.1", lr=given.lr, clip=1.0, threads=1,
            schedule=f"warmup:50 + cosine:{given.steps}", every=max(100, given.steps // 4),
        )  # fmt: skip
        assert run.loss is not None
        first = base.setdefault(shards, run)
        assert first.loss is not None
        lines.append(
            f"| {strategy} | {'in common' if shards == 'shared' else 'by role'} | {run.loss:.4f} "
            f"| {100 * (run.loss / first.loss - 1):+.2f} % | {run.figures['bytes'] / 1e6:,.1f} MB "
            f"| {first.figures['bytes'] / run.figures['bytes']:.0f} |"
        )
        print(lines[-1], flush=True)
    if given.write:
        about = f"{given.model}, {given.workers} workers, {given.steps} steps of {given.batch} texts of 80 symbols.\n\n"
        Path(__file__).with_name("results").joinpath("diloco.md").write_text(about + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
