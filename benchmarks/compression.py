"""What does it cost to send less? Accuracy on MNIST against bytes for every codec, in one table.

    python benchmarks/compression.py [--rounds 60] [--seed 1] [--only int8,drive] [--write]

McMahan's 2NN (199,210 numbers), 100 clients of 600 images, 10 of them a round, batches of 10, one local epoch, SGD with
0.1: workload W1 of `benchmarks/README.md`, judged every other round. `lost` is |x - c(x)|^2 / |x|^2 of one client's
update in the third round, `ratio` how many times fewer bytes a client uploads. `--write` stores
benchmarks/results/compression.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

import atoll
from atoll.channel import Transform, Update
from atoll.channel.transform import Place
from atoll.compress import parse
from atoll.tensors import Record, Tensors

RESULTS = Path(__file__).parent / "results"
TARGET = 0.97
CHANNELS = (
    None, "bf16", "fp16", "int8", "int4", "qsgd:7", "qsgd:1", "sign", "sign + feedback", "drive", "drive:unbiased",
    "drive + feedback", "eden:2", "eden:4", "topk:0.1", "topk:0.01", "topk:0.01 + feedback", "topk:0.001 + feedback",
    "randk:0.1", "powersgd:2", "powersgd:2 + feedback",
)  # fmt: skip

SETTINGS = {
    "data": "mnist", "partition": "iid", "clients": 100, "cohort": 10, "model": "mlp:200,200", "method": "fedavg",
    "lr": 0.1, "epochs": 1, "batch_size": 10, "progress": False, "runs": "none",
}  # fmt: skip


class Seen(Transform):
    """Keeps what a client is about to send."""

    name: ClassVar[str] = "seen"
    place: ClassVar[Place] = "bound"
    found: ClassVar[list[Tensors]] = []

    def send(self, update: Update, told: Record, own: Record, key: Tensor) -> tuple[Update, Record]:
        self.found.append(update.values.update.map(torch.clone))
        return update, own


def delta(seed: int) -> Tensors:
    """One client's update in the third round."""
    data = atoll.data.load("mnist").partition("iid", clients=100, seed=seed)
    more = {
        "rounds": 3,
        "cohort": 10,
        "lr": 0.1,
        "batch_size": 10,
        "eval_every": 0,
        "seed": seed,
        "engine": "loop",
    }
    atoll.Federation(atoll.models.mlp(784, 200, 200, 10), data, "fedavg", channel=[Seen()], **more).fit(
        progress=False
    )
    return Seen.found[-1]


def lost(text: str | None, update: Tensors) -> float:
    """The share of it that does not come back."""
    if text is None:
        return 0.0
    codec, key = parse(text.partition(" + ")[0]), torch.tensor(7)
    flat = update.flat()
    if codec.matrices:
        back = update.map(
            lambda v: codec.through(v, key) if codec.nbytes(v.shape) < 4 * v.numel() else v
        ).flat()
    else:
        back = codec.through(flat, key)
    return float((back - flat).square().sum() / flat.square().sum())


def play(text: str | None, rounds: int, seed: int) -> tuple[float, int | None, int]:
    """Accuracy in the end, the round that reached the target, and the bytes that a round's clients sent."""
    run = atoll.run(**SETTINGS, channel=text, engine="batched", rounds=rounds, eval_every=2, seed=seed)
    judged = [each for each in run.rounds if each.evaluation is not None]
    good = [each.number for each in judged if each.evaluation.overall["accuracy"] >= TARGET]
    first = good[0] if good else None
    return float(run.accuracy or 0), first, run.rounds[-1].bytes_up


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    chosen = [None, *given.only.split(",")] if given.only else CHANNELS
    update = delta(given.seed)
    lines = [
        "| channel | ratio | lost | accuracy, % | rounds to 97 % | MB up to 97 % |",
        "|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    whole = 0
    for text in chosen:
        accuracy, first, up = play(text, given.rounds, given.seed)
        whole = whole or up
        reached = f"{first} | {first * up / 1e6:.2f}" if first else f"over {given.rounds} | "
        lines.append(
            f"| {'none' if text is None else f'`{text}`'} | {whole / up:.2f} | {lost(text, update):.2g} |"
            f" {100 * accuracy:.2f} | {reached} |"
        )
        print(lines[-1], flush=True)
    if given.write:
        about = (__doc__ or "").partition("\n\n")[2].partition("\n\n")[2].split("`--write`")[0].strip()
        text = "\n".join(
            ["# Compression", "", about, "", f"{given.rounds} rounds, seed {given.seed}.", "", *lines]
        )
        (RESULTS / "compression.md").write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
