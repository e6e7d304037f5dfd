"""What does an epoch of logistic regression between two parties cost under encryption?

    ATOLL_DATA=DIR python benchmarks/vertical_glm.py [default_credit] [--epochs 3] [--batch 4096,32768] [--write]
    ATOLL_DATA=DIR python benchmarks/vertical_glm.py breast --modes arbiter:none,arbiter:ckks,sshe:none

All roles run in one process, so that CPU seconds are those of all parties together. `setup` is keys and their way to
the parties; an epoch is the mean over those after the first. `x none` says how many times more CPU than the same run
without a cipher, which is what depends least on the machine. `--write` stores benchmarks/results/vertical-glm.md.
"""

from __future__ import annotations

import argparse
import lzma
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from atoll.parties import play
from atoll.vertical.figures import figures
from atoll.vertical.glm import GLM
from atoll.vertical.protocol import Case, Progress
from atoll.vertical.side import Side

RESULTS = Path(__file__).parent / "results"
HEAD = "| data | mode | crypto | batch | setup s | s/epoch | x none | MB/epoch | ciphertexts/epoch | AUC |"


def sides(name: str) -> dict[str, Side]:
    """Guest and host of a data set of ATOLL_DATA/fate-vertical, aligned by id."""
    root = Path(os.environ.get("ATOLL_DATA", ".")) / "fate-vertical"
    found = {}
    for part in ("guest", "host"):
        with lzma.open(root / f"{name}_hetero_{part}.csv.xz", "rt") as file:
            head, *lines = file.read().splitlines()
        table = np.array([line.split(",") for line in lines], dtype=np.float64)
        table = table[np.argsort(table[:, 0], kind="stable")]
        start = 2 if part == "guest" else 1
        found[part] = Side(
            table[:, start:], tuple(head.split(",")[start:]), table[:, 1] if part == "guest" else None
        )
    return found


def measure(mode: str, crypto: str, batch: int, epochs: int, parts: Mapping[str, Side]) -> dict[str, Any]:
    """One run: CPU seconds, bytes and the AUC on the rows that it has learned from."""
    protocol = GLM(epochs=epochs, batch=batch, mode=mode)  # type: ignore[arg-type]
    case = Case("binary", crypto=crypto, arbiter="arbiter" if mode == "arbiter" else None)
    ends: list[float] = []

    def told(number: int, half: Any, figures: Any) -> None:
        ends.append(time.process_time())

    roles: dict[str, Callable[[Any], Any]] = {
        "guest": lambda link: protocol.guest(link, parts["guest"], case, Progress(tell=told)),
        "host": lambda link: protocol.host(link, parts["host"], case, Progress()),
    }
    if case.arbiter:
        roles["arbiter"] = lambda link: protocol.arbiter(link, case, Progress())
    start = time.process_time()
    played = play(roles)
    each = (ends[-1] - ends[0]) / (len(ends) - 1)
    score = play({
        "guest": lambda link: protocol.score(link, parts["guest"], case, played.results["guest"]),
        "host": lambda link: protocol.answer(link, parts["host"], case, played.results["host"]),
    }).results["guest"]  # fmt: skip
    counts = [row for row in played.transcript.counts() if row.kind != "glm.key"]
    y = parts["guest"].y
    assert y is not None
    return {
        "setup": ends[0] - start - each,
        "epoch": each,
        "mb": sum(row.nbytes for row in counts) / epochs / 1e6,
        "ciphertexts": sum(row.ciphertexts for row in counts) // epochs,
        "auc": figures("binary", y, score)["auc"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", default="default_credit", choices=["default_credit", "breast"])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", default="4096")
    parser.add_argument("--modes", default="arbiter:none,arbiter:ckks")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    if args.epochs < 2:
        parser.error("the first epoch is not counted: two are the least")
    torch.set_num_threads(1)
    lines = [HEAD, "|" + " --- |" * (HEAD.count("|") - 1)]
    print(*lines, sep="\n")
    parts = sides(args.data)
    for batch in map(int, args.batch.split(",")):
        plain: dict[str, float] = {}
        for which in args.modes.split(","):
            mode, _, crypto = which.partition(":")
            found = measure(mode, crypto, batch, args.epochs, parts)
            if crypto == "none":
                plain[mode] = found["epoch"]
            ratio = f"{found['epoch'] / plain[mode]:.0f}" if mode in plain else "-"
            lines.append(
                f"| {args.data} | {mode} | {crypto} | {batch} | {found['setup']:.2f} | {found['epoch']:.3f} | {ratio} |"
                f" {found['mb']:.1f} | {found['ciphertexts']} | {found['auc']:.4f} |"
            )
            print(lines[-1], flush=True)
    if args.write:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "vertical-glm.md").write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
