"""What does privacy cost? Accuracy on MNIST against epsilon, for clients as wholes, in one table and a picture.

    python benchmarks/privacy.py [--seeds 3] [--rounds 100] [--epsilons 1,2,4,8,inf] [--write]

MNIST among 1,000 clients of 60 images each, 100 of them a round on average (each by a coin of its own), and a network
with 32 hidden units. Updates are clipped to a norm and blurred with the noise that spends epsilon in all rounds, by the
accountant that is used for the ledger; `inf` is clipped only. The norm is the same for all. `--write` stores
benchmarks/results/privacy.md and .svg.
"""

from __future__ import annotations

import argparse
import math
import statistics
from pathlib import Path

import atoll
from atoll.privacy import Gaussian, Poisson, noise

RESULTS = Path(__file__).parent / "results"
CLIENTS, COHORT = 1000, 100
DELTA = CLIENTS**-1.1
NORM = 1.0


def multiplier(epsilon: float, rounds: int) -> float:
    """The least noise that spends no more than epsilon."""
    if math.isinf(epsilon):
        return 0.0
    event = Gaussian(noise=1.0, sampling=Poisson(COHORT / CLIENTS))
    return noise(epsilon, DELTA, event, rounds=rounds)


def channel(epsilon: float, rounds: int) -> str:
    """What updates go through."""
    z = multiplier(epsilon, rounds)
    return f"clip:{NORM} | noise:{z:.6g}" if z else f"clip:{NORM}"


def play(epsilon: float, rounds: int, seed: int) -> tuple[float, float | None, float]:
    """Accuracy in percent, the epsilon that was spent, and the noise multiplier."""
    run = atoll.run(
        data="mnist", partition="iid", clients=CLIENTS, cohort=COHORT, model="mlp:32", method="fedavg", lr=0.2,
        epochs=5, batch_size=10, rounds=rounds, eval_every=rounds, channel=channel(epsilon, rounds), weights="equal",
        sampling="poisson", seed=seed, progress=False, runs="none",
    )  # fmt: skip
    assert run.accuracy is not None
    return 100 * run.accuracy, run.to_dict().get("epsilon"), multiplier(epsilon, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--epsilons", default="1,2,4,8,inf")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    lines = [
        f"{CLIENTS:,} clients, {COHORT} a round on average, {given.rounds} rounds, delta = {DELTA:.2g}, every client's"
        f" update bounded by {NORM}, {given.seeds} seeds",
        "",
        "| epsilon | spent | noise multiplier | accuracy, % |",
        "|---|---|---|---|",
    ]
    points = []
    for text in given.epsilons.split(","):
        found = [play(float(text), given.rounds, seed) for seed in range(given.seeds)]
        scores = [score for score, _, _ in found]
        spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
        spent = found[0][1]
        points.append((float(text), statistics.fmean(scores), spread))
        lines.append(
            f"| {text} | {'–' if spent is None else f'{spent:.2f}'} | {found[0][2]:.3f} |"
            f" {points[-1][1]:.1f} ± {spread:.1f} |"
        )
        print(lines[-1], flush=True)
    text = "\n".join(lines) + "\n"
    print(f"\n{text}")
    if given.write:
        (RESULTS / "privacy.md").write_text(text)
        picture(points, RESULTS / "privacy.svg")


def picture(points: list[tuple[float, float, float]], file: Path) -> None:
    """Accuracy against epsilon; what no noise reaches is a line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    blurred = [point for point in points if math.isfinite(point[0])]
    axes.errorbar(*zip(*blurred, strict=True), fmt="o-", capsize=3, label="clipped and blurred")
    for epsilon, score, _ in points:
        if math.isinf(epsilon):
            axes.axhline(score, color="gray", linestyle="--", label="clipped only")
    axes.set(xscale="log", xlabel="epsilon, for clients as wholes", ylabel="accuracy on the test set, %")
    axes.set_xticks([point[0] for point in blurred], [f"{point[0]:g}" for point in blurred])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(file)


if __name__ == "__main__":
    main()
