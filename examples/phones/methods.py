"""Thirty people, thirty models: who gains from personalised federated learning?

Shows: recognising six activities (walking, stairs, sitting ...) from a phone at the waist. Every person is a client
with few labelled windows, about 55 to learn from and 13 for validation (only FEDORA reads those). One federated model
for all is compared with a model of one's own, trained alone (Local), and with personalised methods in between. All
train for five epochs a round: a bar that was trained less would be easy to clear.

Data: UCI HAR, 30 people, read from the folder that ATOLL_DATA names (`atoll data get har` fetches it). A window is
summarised in 33 numbers: per channel its spread, its roughness and its range, and the mean of gyroscope and gravity.
Windows overlap by half and are divided at random, so that a person's test is easier than tomorrow's walk would be;
read the differences between methods, not the heights.

Out: a table (mean and worst person, share of people below Local), and `methods.png`: for every method one dot
per person, how much better or worse off than alone.

    python examples/phones/methods.py [--rounds 30] [--seed 0] [--out DIR]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import atoll

try:
    from matplotlib.figure import Figure
except ImportError:
    sys.exit(str(atoll.MissingExtraError("matplotlib", "plots", "drawing the picture")))

WORSE, BETTER, EQUAL = "#D55E00", "#0072B2", "#999999"


def summary(x: Tensor) -> Tensor:
    """33 features of windows [n, 9 channels, 128 steps], scaled with round constants: nobody's statistics are used."""
    steps = x.diff(dim=-1)
    sizes = torch.cat([x.std(-1), steps.std(-1), x.amax(-1) - x.amin(-1)], -1)
    return torch.cat([2 * x.mean(-1)[:, 3:], ((sizes + 1e-3).log() + 3.5) / 1.5], -1)


def people(seed: int) -> atoll.FederatedData:
    """One client per person; four fifths of the windows are for the test, a fifth of the rest for validation."""
    har = atoll.data.load("har")
    features = atoll.data.from_arrays(
        summary(har.train.inputs), har.train.targets, columns=har.columns, natural="subject", name="har"
    )
    return features.partition("natural", seed=seed, test=0.8, validation=0.2)


def model() -> nn.Module:
    return atoll.models.mlp(33, 64, 6)


def methods(rounds: int) -> dict[str, atoll.Method]:
    """Each trains five epochs a round, at a rate that falls to a tenth by the end."""
    falling = f"exponential:{0.1 ** (1 / rounds):.4f}"
    common = {"lr": 0.01, "optimizer": "adam", "epochs": 5, "batch_size": 32, "schedule": falling}
    return {
        "Local": atoll.Local(**common),
        "FedAvg": atoll.FedAvg(**common),
        "FedAvg, fine-tuned": atoll.FineTune(**common, finetune_epochs=10),
        "FedRep": atoll.FedRep(**{**common, "epochs": 2}, head_epochs=3),
        "FedPer": atoll.FedPer(**common),
        "FEDORA": atoll.Fedora(**common),
        "Ditto": atoll.Ditto(**common, lam=0.02),
    }


def accuracies(data: atoll.FederatedData, method: atoll.Method, rounds: int, seed: int) -> np.ndarray:
    """Each person's accuracy, in per cent, with the model this person would use."""
    federation = atoll.Federation(
        model,
        data,
        method,
        rounds=rounds,
        cohort=len(data),
        eval_every=0,
        engine="batched",
        workers=1,
        seed=seed,
    )
    each = federation.fit().evaluation.each
    found = each.get("personal", each["clients"])["accuracy"]
    return 100 * np.array([found[client] for client in range(len(data))])


def draw(scores: dict[str, np.ndarray], path: Path) -> None:
    local = scores["Local"]
    names = sorted((n for n in scores if n != "Local"), key=lambda n: np.mean(scores[n]))
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.add_subplot()
    for row, name in enumerate(names):
        gain = np.sort(scores[name] - local)
        colours = np.where(gain < 0, WORSE, np.where(gain > 0, BETTER, EQUAL))
        height = row + 0.5 * (np.arange(len(gain)) / (len(gain) - 1) - 0.5)
        axes.scatter(gain, height, s=20, c=colours, linewidths=0, alpha=0.85)
        axes.plot([gain.mean()] * 2, [row - 0.36, row + 0.36], color="black", linewidth=2)
        note = f"{scores[name].mean():.1f} % on average\n{(gain < 0).sum()} of {len(gain)} worse off"
        axes.text(1.02, row, note, transform=axes.get_yaxis_transform(), va="center", fontsize=9)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel(
        f"accuracy minus that of the model trained alone (Local: {local.mean():.1f} %), in points"
    )
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.text(0, len(names) - 0.45, "worse than alone  ", color=WORSE, ha="right", weight="bold")
    axes.text(0, len(names) - 0.45, "  better than alone", color=BETTER, ha="left", weight="bold")
    axes.set_ylim(-0.6, len(names) - 0.1)
    best, below = names[-1], int((scores["FedAvg"] < local).sum())
    figure.suptitle(
        f"One model for all leaves {below} of {len(local)} people worse off than alone; {best} only "
        f"{(scores[best] < local).sum()}", weight="bold",
    )  # fmt: skip
    axes.set_title("A dot is a person, the bar the mean over people", fontsize=9, color="#444444")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=30, help="rounds of every method (default 30)")
    parser.add_argument(
        "--seed", type=int, default=0, help="division, initial model and batches follow from it"
    )
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the picture (default: here)")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    data = people(options.seed)
    print(f"{data}\n\n{'method':20}{'mean':>8}{'worst':>8}{'below Local':>13}")
    scores: dict[str, np.ndarray] = {}
    for name, method in methods(options.rounds).items():
        own = scores[name] = accuracies(data, method, options.rounds, options.seed)
        below = 100 * np.mean(own < scores["Local"])
        print(f"{name:20}{own.mean():6.1f} %{own.min():6.1f} %{below:11.0f} %", flush=True)
    path = options.out / "methods.png"
    draw(scores, path)
    print(f"\n{path}")


if __name__ == "__main__":
    try:
        main()
    except (atoll.AtollError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))
