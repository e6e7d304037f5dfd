"""Four hospitals: should this one join the federation?

Shows: predicting heart disease in Cleveland, Budapest (hungarian), Basel and Zurich (switzerland) and Long Beach (va).
Each hospital is a client, with 46 to 303 patients of its own, and in Switzerland 93 % of them are ill: hospitals
differ. Every hospital has four ways to get a model, and all are tested on its own patients:

    alone              trained on its own patients only (Local)
    the others' model  the federation of the other three trains it (FedAvg); this hospital only takes it
    join, FedAvg       all four train one model
    join, Ditto        all four train one model, and each keeps its own beside it, pulled towards the shared one

Data: UCI heart disease, in the package: no download. 15 % of a hospital's patients are for training, 7 to 45 of them,
as where a hospital has just begun: if joining ever helps, it is there. That is little, so all is repeated over seeds
(other patients, other models), and a gain counts from two standard errors on. Accuracy is compared with guessing the
more frequent answer, which is hard to beat in Switzerland.

Out: accuracy per hospital and its gain over training alone, a recommendation, and `hospitals.png`.

    python examples/hospitals.py [--rounds 15] [--seeds 6] [--out DIR]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

import atoll

try:
    from matplotlib.figure import Figure
except ImportError:
    sys.exit(str(atoll.MissingExtraError("matplotlib", "plots", "drawing the picture")))

COMMON = {"lr": 0.2, "epochs": 2, "batch_size": 16}
WAYS = ["alone", "the others' model", "join, FedAvg", "join, Ditto"]
COLOURS = ["#999999", "#E69F00", "#0072B2", "#009E73"]


def model() -> nn.Module:
    return atoll.models.logistic(15, 2)


def train(data: atoll.FederatedData, method: atoll.Method, rounds: int, seed: int) -> atoll.Run:
    return atoll.Federation(
        model,
        data,
        method,
        rounds=rounds,
        cohort=len(data),
        eval_every=0,
        engine="batched",
        workers=1,
        seed=seed,
    ).fit()


def own(run: atoll.Run) -> list[float]:
    """Each hospital's accuracy on its own patients, in per cent, with the model that it would use."""
    each = run.evaluation.each
    found = each.get("personal", each["clients"])["accuracy"]
    return [100 * found[client] for client in sorted(found)]


def borrowed(data: atoll.FederatedData, hospital: int, rounds: int, seed: int) -> float:
    """Accuracy, in per cent, of the other hospitals' model on the patients of this one."""
    others = data.choose([client for client in range(len(data)) if client != hospital])
    network = train(others, atoll.FedAvg(**COMMON), rounds, seed).model
    test = data.samples(hospital, "test")
    with torch.no_grad():
        right = network(test.inputs).argmax(-1) == test.targets
    return 100 * float(right.float().mean())


def trial(rounds: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Accuracies [way, hospital] of one division of the patients, and those of guessing [hospital]."""
    data = atoll.data.load("heart").partition("natural", seed=seed, test=0.85)
    ill = np.array([float(data.samples(h, "test").targets.float().mean()) for h in range(len(data))])
    rows = [
        own(train(data, atoll.Local(**COMMON), rounds, seed)),
        [borrowed(data, hospital, rounds, seed) for hospital in range(len(data))],
        own(train(data, atoll.FedAvg(**COMMON), rounds, seed)),
        own(train(data, atoll.Ditto(**COMMON, lam=0.3), rounds, seed)),
    ]
    return np.array(rows), 100 * np.maximum(ill, 1 - ill)


def error(values: np.ndarray) -> np.ndarray:
    """Standard error of the mean over seeds, the first axis."""
    return values.std(0, ddof=1) / np.sqrt(len(values))


def advice(gain: np.ndarray, doubt: np.ndarray) -> str:
    """What to do, from the gains over training alone of all ways [way] and their standard errors."""
    best = int(gain.argmax())
    if best == 0 or gain[best] < 2 * doubt[best]:
        return "no clear gain"
    return WAYS[best]


def draw(scores: np.ndarray, guess: np.ndarray, names: list[str], advised: list[str], path: Path) -> None:
    """`scores` is [seed, way, hospital]."""
    mean, doubt = scores.mean(0), 2 * error(scores)
    figure = Figure(figsize=(8.4, 4.6), layout="constrained")
    axes = figure.add_subplot()
    places = np.arange(len(names))
    for way, (label, colour) in enumerate(zip(WAYS, COLOURS, strict=True)):
        at = places + 0.17 * (way - 1.5)
        axes.errorbar(at, mean[way], doubt[way], fmt="o", color=colour, markersize=8, capsize=3, label=label)
    for place, height in zip(places, guess, strict=True):
        axes.plot([place - 0.38, place + 0.38], [height] * 2, color="black", linestyle=":", linewidth=1.2)
    axes.plot([], [], color="black", linestyle=":", linewidth=1.2, label="guessing")
    axes.set_xticks(places, [f"{n}\n{a}" for n, a in zip(names, advised, strict=True)])
    axes.set_ylabel("accuracy on the hospital's own patients, %")
    axes.grid(axis="y", color="#e3e3e3")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    axes.set_title(f"Mean over {len(scores)} seeds, bars: two standard errors", fontsize=9, color="#444444")
    joins = [n for n, a in zip(names, advised, strict=True) if a != "no clear gain"]
    finding = f"{' and '.join(joins)} clearly gain" if joins else "no hospital clearly gains"
    lost = mean[2] - mean[0]
    worst = int(lost.argmin())
    if lost[worst] < -1:
        finding = f"One model for all costs {names[worst]} {-lost[worst]:.0f} points; {finding} by joining"
    figure.suptitle(finding[0].upper() + finding[1:], weight="bold")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="rounds of every run (default 15)")
    parser.add_argument("--seeds", type=int, default=6, help="how often all is repeated (default 6)")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the picture (default: here)")
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error("--seeds must be at least 2: one says nothing about chance")
    options.out.mkdir(parents=True, exist_ok=True)

    trials = [trial(options.rounds, seed) for seed in range(options.seeds)]
    scores, guess = np.array([s for s, _ in trials]), np.array([g for _, g in trials]).mean(0)
    gains = scores - scores[:, :1]
    data = atoll.data.load("heart").partition("natural", test=0.85)
    names, mean, doubt = list(data.names), gains.mean(0), error(gains)
    print(f"{'hospital':13}{'patients':>9}{'guessing':>10}" + "".join(f"{way:>20}" for way in WAYS))
    advised = []
    for h, name in enumerate(names):
        cells = [f"{scores[:, 0, h].mean():18.1f} %"]
        cells += [
            f"{scores[:, w, h].mean():7.1f} % ({mean[w, h]:+5.1f}±{doubt[w, h]:.1f})" for w in (1, 2, 3)
        ]
        print(f"{name:13}{data.size(h):9}{guess[h]:8.1f} %" + "".join(f"{cell:>20}" for cell in cells))
        advised.append(advice(mean[:, h], doubt[:, h]))
    print("\nadvice: " + ", ".join(f"{name} {what}" for name, what in zip(names, advised, strict=True)))
    path = options.out / "hospitals.png"
    draw(scores, guess, names, advised, path)
    print(f"\n{path}")


if __name__ == "__main__":
    try:
        main()
    except (atoll.AtollError, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(getattr(problem, "exit_code", 1))
