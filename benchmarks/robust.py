"""What do lying clients do to a run, under which rule? Accuracy for every rule and attack, as a heat map.

    python benchmarks/robust.py [--quick] [--seeds 3] [--rounds 10] [--rules "mean,krum:4"] [--attacks "alie,mimic"]
    python benchmarks/robust.py --speed

MNIST, 20 clients (Dirichlet 1.0), all of them in every round, 4 of them lie. A network of 64 hidden units, batches of
64, one local epoch, SGD with 0.2, 10 rounds. The worst attack is what a rule is worth. Every finished cell is kept in
benchmarks/results/robust.json, and found there again; the table and the picture are made of it. `--quick` is one seed,
five rounds and few cells, and stores nothing.

`--speed` takes 100 updates of a million numbers through every rule on one core, and stores the seconds of the processor
in benchmarks/results/robust-speed.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

import atoll
from atoll.robust import aggregate

RESULTS = Path(__file__).parent / "results"
CLIENTS, LIARS = 20, 4
SETTINGS = {
    "data": "mnist", "partition": "dirichlet:1.0", "clients": CLIENTS, "cohort": CLIENTS, "model": "mlp:64",
    "method": "fedavg", "lr": 0.2, "epochs": 1, "batch_size": 64, "eval_every": 0, "progress": False, "runs": "none",
}  # fmt: skip

RULES: Mapping[str, Mapping[str, str]] = {
    "mean": {},
    **{text: {"aggregate": text} for text in (
        "median", "trimmed:4", "meamed:4", "geometric", "rfa", "krum:4", "multikrum:4", "bulyan:4", "mda:4", "caf:4",
        "dnc:4", "bound:1", "foolsgold", "flame", "bucket:2 + median", "nnm:4 + median", "nnm + trimmed:4",
        "nnm:4 + geometric", "nnm + krum:4", "arc + nnm + trimmed:4",
    )},
    "momentum + cclip:1": {"channel": "momentum:0.9", "aggregate": "cclip:1"},
    "momentum + nnm + trimmed:4": {"channel": "momentum:0.9", "aggregate": "nnm + trimmed:4"},
}  # fmt: skip
ATTACKS = ("none", "signflip", "ipm:0.1", "alie", "minmax", "minsum", "mimic", "gaussian:1", "infinity:1e10",
           "labelflip", "optimal-ipm", "optimal-alie")  # fmt: skip
QUICK = ("mean", "median", "krum:4", "nnm + trimmed:4"), ("none", "signflip", "alie", "labelflip")

FAST: Mapping[str, float | None] = {  # seconds that a rule may take
    "mean": None, "median": 1.9, "trimmed:20": 2.0, "meamed:20": None, "krum:20": 0.5, "multikrum:20": 0.5,
    "nnm:20 + mean": 0.5, "geometric": 0.5, "rfa": 0.5, "bulyan:20": None, "mda:20": None, "caf:20": None,
    "dnc:20": None, "cclip:500,3": None, "bound:700": None, "fltrust": None, "foolsgold": None, "flame:0": None,
    "nnm + trimmed:20": None, "arc + krum:20": None, "bucket:2 + median": None,
}  # fmt: skip


def accuracy(rule: str, attack: str, seed: int, rounds: int) -> float:
    """Of the model after so many rounds; that of guessing where the run left the finite numbers."""
    lying = {} if attack == "none" else {"attackers": LIARS, "attack": attack}
    try:
        run = atoll.run(**SETTINGS, **RULES[rule], **lying, seed=seed, rounds=rounds)
    except atoll.RunError as error:
        print(f"   {error}")
        return 0.1
    assert run.accuracy is not None
    return run.accuracy


def cells(
    rules: Sequence[str], attacks: Sequence[str], seeds: int, rounds: int, file: Path | None
) -> dict[str, float]:
    """Accuracies by "rule | attack | seed", those of earlier calls from the file."""
    found: dict[str, float] = json.loads(file.read_text()) if file is not None and file.exists() else {}
    for seed in range(seeds):
        for rule in rules:
            for attack in attacks:
                key = f"{rule} | {attack} | {seed} | {rounds}"
                if key in found:
                    continue
                found[key] = accuracy(rule, attack, seed, rounds)
                print(f"{key:60} {100 * found[key]:5.1f} %", flush=True)
                if file is not None:
                    file.write_text(json.dumps(found, indent=0) + "\n")
    return found


def means(
    found: Mapping[str, float], rules: Iterable[str], attacks: Iterable[str], seeds: int, rounds: int
) -> dict[str, dict[str, float]]:
    """The mean over seeds, rule by rule, and the worst attack's."""
    table = {}
    for rule in rules:
        row = {
            attack: statistics.mean(found[f"{rule} | {attack} | {seed} | {rounds}"] for seed in range(seeds))
            for attack in attacks
        }
        table[rule] = {**row, "worst": min(row.values())}
    return table


def written(table: Mapping[str, Mapping[str, float]], seeds: int, rounds: int) -> str:
    """The table as Markdown, the best worst case first."""
    names = list(next(iter(table.values())))
    order = sorted(table, key=lambda rule: -table[rule]["worst"])
    lines = [f"| rule | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
    lines += [
        f"| {rule} | {' | '.join(f'{100 * table[rule][name]:.1f}' for name in names)} |" for rule in order
    ]
    said = (
        f"Accuracy in percent: MNIST, {CLIENTS} clients (Dirichlet 1.0), {LIARS} of them lie, {rounds} rounds,"
        + (" one seed." if seeds == 1 else f" mean over {seeds} seeds.")
    )
    return "\n".join([said, "", *lines, "", *verdicts(table)]) + "\n"


def verdicts(table: Mapping[str, Mapping[str, float]]) -> list[str]:
    """What the table says of what it is to show."""
    if not {"mean", "nnm + trimmed:4"} <= table.keys() or "none" not in table["mean"]:
        return []
    plain, best = table["mean"]["none"], table["nnm + trimmed:4"]["worst"]
    found = [
        f"`nnm + trimmed:4` at worst {100 * (plain - best):.1f} points below the mean without attackers."
    ]
    if "signflip" in table["mean"]:
        found.append(
            f"The plain mean under `signflip`: {100 * (plain - table['mean']['signflip']):.1f} points below."
        )
    return found


def drawn(table: Mapping[str, Mapping[str, float]], place: Path) -> None:
    """The table as a heat map, rules over attacks."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "atoll"
    order = sorted(table, key=lambda rule: -table[rule]["worst"])
    names = list(table[order[0]])
    figure, axes = plt.subplots(figsize=(1.5 + 0.75 * len(names), 1.2 + 0.34 * len(order)))
    values = [[100 * table[rule][name] for name in names] for rule in order]
    axes.imshow(values, cmap="viridis", vmin=0, vmax=100, aspect="auto")
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right")
    axes.set_yticks(range(len(order)), order)
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            axes.text(
                x, y, f"{value:.0f}", ha="center", va="center", color="white" if value < 60 else "black"
            )
    axes.set_title(f"Accuracy (%) with {LIARS} liars of {CLIENTS}")
    figure.tight_layout()
    figure.savefig(place, metadata={"Date": None})
    plt.close(figure)


def speed() -> str:
    """Seconds of the processor for every rule, as a table; the best of three."""
    torch.set_num_threads(1)
    count, size = 100, 1_000_000
    stream = torch.Generator().manual_seed(0)
    rows = torch.randn(count, size, generator=stream) + 0.3 * torch.randn(size, generator=stream)
    lines = [
        f"{count} updates of {size:,} numbers, one thread: seconds of the processor, the best of three.",
        "",
    ]
    lines += ["| rule | seconds | at most |", "|---|---:|---:|"]
    for rule, most in FAST.items():
        times = []
        for _ in range(3):
            begun = time.process_time()
            aggregate(rows, rule, beside=rows[:5].mean(0))
            times.append(time.process_time() - begun)
        lines.append(f"| `{rule}` | {min(times):.2f} | {'' if most is None else most} |")
        print(lines[-1], flush=True)
        assert most is None or min(times) <= most, f"{rule} took {min(times):.2f} s"
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--rules", default=",".join(RULES))
    parser.add_argument("--attacks", default=",".join(ATTACKS))
    given = parser.parse_args()
    if given.speed:
        (RESULTS / "robust-speed.md").write_text(speed())
        return
    rules = [each.strip() for each in given.rules.split(",")]
    attacks = [each.strip() for each in given.attacks.split(",")]
    seeds, rounds, file = given.seeds, given.rounds, RESULTS / "robust.json"
    if given.quick:
        (rules, attacks), seeds, rounds = [list(each) for each in QUICK], 1, 5
    found = cells(rules, attacks, seeds, rounds, None if given.quick else file)
    table = means(found, rules, attacks, seeds, rounds)
    print(text := written(table, seeds, rounds))
    if not given.quick:
        (RESULTS / "robust.md").write_text(text)
        drawn(table, RESULTS / "robust.svg")


if __name__ == "__main__":
    main()
