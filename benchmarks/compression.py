"""What does it cost to send less? Accuracy against bytes for every codec, in one table and one picture.

    python benchmarks/compression.py [mnist | cifar10] [--rounds 100] [--seed 1] [--only "int8,drive > int4"]
        [--quick] [--write]

mnist is McMahan's 2NN (199,210 numbers), 100 clients of 600 images, 10 of them a round, batches of 10, one local epoch,
SGD with 0.1: workload W1 of `benchmarks/README.md`, judged every other round, until 97 %. cifar10 is his CNN (1,105,098
numbers) on 25,000 pictures, 100 clients, 10 a round, batches of 50, one epoch, SGD with 0.05, judged every fifth round,
until 40 %. `lost` is |x - c(x)|^2 / |x|^2 of one client's update in the third round, `up`, `down` and `both` how many
times fewer bytes went, until the target was reached or in all, than without codecs; `A > B` packs updates with A and
models on their way to clients with B. `--quick` plays four channels for three rounds, to see that it works. `--write`
stores benchmarks/results/compression-NAME.md and .svg.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

import atoll
from atoll.channel import Transform, Update
from atoll.channel.transform import Place
from atoll.compress import parse
from atoll.tensors import Record, Tensors

RESULTS = Path(__file__).parent / "results"
CHANNELS = (
    "none", "zstd", "bf16", "bf16 + zstd", "fp16", "int8", "int8 + zstd", "int4", "int4 + zstd", "qsgd:7",
    "qsgd:1", "sign", "sign + feedback", "drive", "drive:unbiased", "drive + feedback", "eden:2", "eden:4",
    "topk:0.1", "topk:0.01", "topk:0.01 + feedback", "topk:0.001 + feedback", "randk:0.1", "fetchsgd:10,0.1",
    "powersgd:2", "powersgd:2 + feedback", "int8 > int8", "drive + feedback > int4",
    "drive + feedback > eden:3", "drive + feedback > eden:4", "eden:2 + feedback > eden:4",
    "drive + feedback > drive + feedback",
)  # fmt: skip
QUICK = ("none", "int8", "drive + feedback > int4", "powersgd:2 + feedback > drive + feedback")

COMMON = {"partition": "iid", "clients": 100, "cohort": 10, "method": "fedavg", "epochs": 1, "progress": False,
          "runs": "none", "engine": "batched"}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "mnist": {
        **COMMON,
        "data": "mnist",
        "model": "mlp:200,200",
        "lr": 0.1,
        "batch_size": 10,
        "eval_every": 2,
    },
    "cifar10": {**COMMON, "data": "cifar10", "model": "cnn", "lr": 0.05, "batch_size": 50, "eval_every": 5},
}
TARGETS = {"mnist": 0.97, "cifar10": 0.4}


class Seen(Transform):
    """Keeps what a client is about to send."""

    name: ClassVar[str] = "seen"
    place: ClassVar[Place] = "bound"
    found: ClassVar[list[Tensors]] = []

    def send(self, update: Update, told: Record, own: Record, key: Tensor) -> tuple[Update, Record]:
        self.found.append(update.values.update.map(torch.clone))
        return update, own


class Played(NamedTuple):
    """A run: by evaluation the MB that went until then, both ways, and accuracy; where it reached the target."""

    accuracy: float
    megabytes: list[float]
    accuracies: list[float]
    first: int | None
    up: int
    down: int


def delta(name: str, seed: int) -> Tensors:
    """One client's update in the third round."""
    given = SETTINGS[name]
    data = atoll.data.load(given["data"])
    model = atoll.models.build(given["model"], tuple(data.train.inputs.shape[1:]), 10)
    settings = {key: given[key] for key in ("cohort", "lr", "batch_size", "epochs")}
    parted = data.partition(given["partition"], clients=given["clients"], seed=seed)
    more = {"rounds": 3, "eval_every": 0, "seed": seed, "engine": "loop"}
    atoll.Federation(model, parted, "fedavg", channel=[Seen()], **settings, **more).fit(progress=False)
    return Seen.found[-1]


def lost(text: str, update: Tensors) -> float:
    """The share of it that does not come back."""
    text = text.partition(" > ")[0]
    if text in ("none", "zstd"):
        return 0.0
    if text.startswith("fetchsgd"):
        return float("nan")  # nothing comes back of one client's
    codec, key = parse(text.partition(" + ")[0]), torch.tensor(7)
    flat = update.flat()
    if codec.apart:
        back = update.map(
            lambda v: codec.through(v, key) if codec.nbytes(v.shape) < 4 * v.numel() else v
        ).flat()
    else:
        back = codec.through(flat, key)
    return float((back - flat).square().sum() / flat.square().sum())


def play(name: str, text: str, rounds: int, seed: int) -> Played:
    """One run to the end."""
    up, _, down = text.partition(" > ")
    settings = {**SETTINGS[name], "rounds": rounds, "seed": seed}
    run = atoll.run(**settings, channel=None if up == "none" else up, down=down or None)
    judged = [each for each in run.rounds if each.evaluation is not None]
    scores = [each.evaluation.overall["accuracy"] for each in judged if each.evaluation is not None]
    good = [each.number for each, score in zip(judged, scores, strict=True) if score >= TARGETS[name]]
    last = good[0] if good else rounds
    sent = [
        sum(r.bytes_up + r.bytes_down for r in run.rounds if r.number <= each.number) / 1e6 for each in judged
    ]
    until = [each for each in run.rounds if each.number <= last]
    bytes_up, bytes_down = sum(r.bytes_up for r in until), sum(r.bytes_down for r in until)
    return Played(scores[-1], sent, scores, good[0] if good else None, bytes_up, bytes_down)


def row(text: str, found: Played, plain: Played, share: float, rounds: int) -> str:
    """A run as a line of the table, beside the run without codecs."""
    ratios = (
        plain.up / found.up,
        plain.down / found.down,
        (plain.up + plain.down) / (found.up + found.down),
    )
    reached = str(found.first) if found.first else f"over {rounds}"
    cells = [f"{ratio:.2f}" for ratio in ratios]
    return (
        f"| `{text}` | {share:.2g} | {100 * found.accuracy:.2f} | {reached} | {' | '.join(cells)} |"
        f" {(found.up + found.down) / 1e6:.1f} |"
    )


def picture(name: str, runs: dict[str, Played], file: Path) -> None:
    """Accuracy against the bytes that have gone, both ways."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    for at, (text, found) in enumerate(runs.items()):
        style = ("-", "--", ":", "-.")[at // 10 % 4]  # ten colours
        axes.plot(found.megabytes, [100 * each for each in found.accuracies], style, label=text)
    best = max(found.accuracy for found in runs.values())
    axes.set(xscale="log", xlabel="MB, up and down", ylabel="accuracy on the test set, %", title=name)
    axes.set_ylim(100 * best - 12, 100 * best + 1)
    axes.axhline(100 * TARGETS[name], color="gray", linewidth=0.8)
    axes.grid(alpha=0.3)
    figure.legend(fontsize=6, loc="outside right upper")
    figure.savefig(file)


def chosen(only: str, quick: bool) -> Sequence[str]:
    """What is played; without codecs in any case, for all is told beside that."""
    if only:
        return ["none", *(each.strip() for each in only.split(",") if each.strip() != "none")]
    return QUICK if quick else CHANNELS


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", default="mnist", choices=[*SETTINGS])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    name, rounds = given.name, 3 if given.quick else given.rounds
    update, runs = delta(name, given.seed), dict[str, Played]()
    goal = f"{100 * TARGETS[name]:.0f} %"
    lines = [
        f"| channel (> down) | lost | accuracy, % | rounds to {goal} | up | down | both | MB until then |",
        "|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for text in chosen(given.only, given.quick):
        runs[text] = play(name, text, rounds, given.seed)
        lines.append(row(text, runs[text], runs["none"], lost(text, update), rounds))
        print(lines[-1], flush=True)
    if given.write:
        about = (__doc__ or "").split("\n\n")[2].split("`--quick`")[0].replace("\n", " ").strip()
        text = "\n".join(
            [f"# Compression: {name}", "", about, "", f"{rounds} rounds, seed {given.seed}.", "", *lines]
        )
        (RESULTS / f"compression-{name}.md").write_text(text + "\n", "utf-8")
        picture(name, runs, RESULTS / f"compression-{name}.svg")


if __name__ == "__main__":
    main()
