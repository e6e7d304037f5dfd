"""Domain adaptation: what a target without labels gains, over all pairs of domains.

    python benchmarks/transfer.py office      # Office-Caltech-10, SURF: 12 pairs of four domains
    python benchmarks/transfer.py digits      # MNIST and USPS, 16 x 16: both ways
    python benchmarks/transfer.py rest        # Office-Caltech-10: three sources, the fourth domain is the target

Needs the data (ATOLL_DATA). `--seeds 0,1,2`; `--write` keeps the table in results/transfer-NAME.md. Accuracies of the
target in %, over all of its samples, which are read without labels in training (the usual, transductive protocol).
SURF histograms are divided by their sums, then every column is standardised within its domain. Pixels of digits are
divided by the largest. Every method trains the same network in the same steps; settings are one for all pairs.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import atoll
from atoll.methods import FADA, SHOT, AdaBN, FedAvg, FedCORAL, FedMMD

Domain = tuple[NDArray[np.float32], NDArray[np.int64]]

OFFICE = ("caltech", "amazon", "webcam", "dslr")
PLAIN, NORMAL = "mlp:64", "mlp-bn:64"
SOLVER: dict[str, Any] = {
    "lr": 0.05, "momentum": 0.9, "batch_size": None, "epochs": 3, "weight_decay": 1e-3, "clip": 1.0
}  # fmt: skip
"""Three steps a round over all of a client's samples, so that what is compared of features is not that of a batch."""
ROUNDS = {"office": 40, "rest": 40, "digits": 60}
FIT = {"adapt_epochs": 20, "adapt_lr": 0.02}
METHODS: dict[str, tuple[type[FedAvg], str, dict[str, Any]]] = {
    "source only": (FedCORAL, PLAIN, {"lam": 0.0}),
    "Fed-CORAL": (FedCORAL, PLAIN, {"lam": 100.0}),
    "Fed-MMD": (FedMMD, PLAIN, {"lam": 1.0}),
    "FADA": (FADA, PLAIN, {"lam": 0.1, "identifier_lr": 1.0}),
    "SHOT": (SHOT, PLAIN, FIT),
    "source only, BatchNorm": (FedCORAL, NORMAL, {"lam": 0.0}),
    "AdaBN": (AdaBN, NORMAL, {}),
}


def office(root: Path) -> dict[str, Domain]:
    """The four domains."""
    from scipy.io import loadmat

    found = {}
    for name in OFFICE:
        data = loadmat(root / "office-caltech-surf" / f"{name}_SURF_L10.mat")
        x = data["fts"].astype(np.float64)
        x /= x.sum(1, keepdims=True)
        deviation = x.std(0)
        x = (x - x.mean(0)) / np.where(deviation > 0, deviation, 1.0)
        found[name] = x.astype(np.float32), data["labels"].ravel().astype(np.int64) - 1
    return found


def digits(root: Path) -> dict[str, Domain]:
    """MNIST and USPS."""
    with np.load(root / "domain-digits" / "mnist_usps_16x16.npz") as data:
        found = {}
        for name, x, y in (("mnist", "Xs", "Ys"), ("usps", "Xt", "Yt")):
            pixels = (data[x].T / data[x].max()).astype(np.float32)
            found[name] = pixels, data[y].ravel().astype(np.int64) - 1
    return found


def accuracy(
    domains: Mapping[str, Domain], sources: Sequence[str], target: str, kind: type[FedAvg], model: str,
    settings: Mapping[str, Any], rounds: int, seed: int,
) -> float:  # fmt: skip
    """The target's accuracy by the model that it predicts with, in %."""
    clients = {name: {"train": domains[name], "test": domains[name]} for name in (*sources, target)}
    data = atoll.data.from_clients(clients, classes=10)
    shape = domains[target][0].shape[1:]
    method = kind(targets=target, **settings)
    given = {"rounds": rounds, "seed": seed, "eval_every": 0, "runs": None, "device": "cpu"}
    run = atoll.Federation(lambda: atoll.models.build(model, shape, 10), data, method, **given).fit(
        progress=False
    )
    assert run.evaluation is not None
    own = "personal" if run.evaluation.personal else "clients"
    return 100 * float(run.evaluation.each[own]["accuracy"][len(sources)])


def pairs(name: str, domains: Mapping[str, Domain]) -> list[tuple[tuple[str, ...], str]]:
    """Sources and targets."""
    if name == "rest":
        return [(tuple(d for d in domains if d != target), target) for target in domains]
    return [((source,), target) for source, target in itertools.permutations(domains, 2)]


def table(
    name: str, domains: Mapping[str, Domain], seeds: Sequence[int], methods: Sequence[str]
) -> list[str]:
    """A line for each method: its mean over seeds for each pair, and over all of them."""
    cases = pairs(name, domains)
    head = [f"{''.join(s[0].upper() for s in sources)} to {target[0].upper()}" for sources, target in cases]
    found = [f"| | {' | '.join(head)} | mean | CPU s |", "|---" * (len(head) + 3) + "|"]
    for method in methods:
        kind, model, more = METHODS[method]
        start = time.process_time()
        cells = [
            statistics.fmean(
                accuracy(domains, sources, target, kind, model, {**SOLVER, **more}, ROUNDS[name], seed)
                for seed in seeds
            )
            for sources, target in cases
        ]
        spent = time.process_time() - start
        shown = " | ".join(f"{cell:.1f}" for cell in cells)
        found.append(f"| {method} | {shown} | {statistics.fmean(cells):.1f} | {spent:.0f} |")
        print(found[-1], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("office", "digits", "rest"))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--methods", default="", help="as the table calls them, with semicolons between")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    root = Path(os.environ["ATOLL_DATA"])
    domains = digits(root) if given.what == "digits" else office(root)
    seeds = [int(seed) for seed in given.seeds.split(",")]
    chosen = given.methods.split(";") if given.methods else list(METHODS)
    lines = table(given.what, domains, seeds, chosen)
    print("\n".join(lines))
    if given.write:
        path = Path(__file__).parent / "results" / f"transfer-{given.what}.md"
        path.write_text("\n".join([f"# Target accuracy, {given.what}, seeds {given.seeds}", "", *lines, ""]))


if __name__ == "__main__":
    main()
