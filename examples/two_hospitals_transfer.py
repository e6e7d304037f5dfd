"""Two hospitals that share neither columns nor, but for a few, patients: one learns from what the other knows.

Shows: federated transfer learning (Liu et al. 2020). A clinic has diagnoses and ten features of its patients; a
laboratory has twenty other features of its own, and no diagnosis. Only some patients are known to both. The
laboratory's other patients are judged by what the clinic's labels taught; under CKKS neither sees the other's rows.

Data: breast cancer (UCI), in the package; `pip install ".[vertical,he,plots]"`.

Out: AUC on the laboratory's own patients by the number of common ones, beside a classifier that the laboratory could
train if it were told the diagnoses of these (transfer tells it none); the same under CKKS once; and a picture.

    python examples/two_hospitals_transfer.py [--common 10,20,40,80] [--sealed 20] [--picture FILE.png]
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from importlib.resources import files

import numpy as np
import torch

from atoll.vertical import Party, fit
from atoll.vertical.figures import auc


def parties() -> tuple[Party, Party]:
    """The clinic, which knows who is ill, and the laboratory."""
    place = files("atoll.vertical") / "embedded"
    clinic = Party.read(str(place / "clinic.csv.xz"), id="id", label="benign")
    return clinic, Party.read(str(place / "laboratory.csv.xz"), id="id")


def alone(x: np.ndarray, y: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """Scores of a logistic regression on few rows, with weight decay."""
    torch.manual_seed(0)
    inputs, labels = torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)
    net = torch.nn.Linear(x.shape[1], 1)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.05, weight_decay=0.3)
    for _ in range(200):
        optimizer.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(net(inputs)[:, 0], labels).backward()
        optimizer.step()
    with torch.no_grad():
        return net(torch.tensor(rest, dtype=torch.float32))[:, 0].numpy()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--common", default="10,20,40,80")
    parser.add_argument(
        "--sealed", type=int, default=20, help="patients in common of the run under CKKS; 0 for none"
    )
    parser.add_argument("--picture", default="two_hospitals_transfer.png")
    given = parser.parse_args()
    clinic, laboratory = parties()
    labels = dict(zip(clinic.ids, clinic.y if clinic.y is not None else [], strict=True))
    both = [row for row, name in enumerate(laboratory.ids) if name in labels]
    counts = [int(each) for each in given.common.split(",")]
    found: dict[str, list[float]] = {"transfer": [], "alone": []}
    print("patients in common   transfer   laboratory, told their diagnoses")
    for count, crypto in [
        *((count, "none") for count in counts),
        *([(given.sealed, "ckks")] if given.sealed else []),
    ]:
        known, rest = both[:count], both[count:]
        # The other patients of the laboratory get names that the clinic has never heard of.
        ids = [name if row in known else f"only here {name}" for row, name in enumerate(laboratory.ids)]
        run = fit(
            {"guest": clinic, "host": replace(laboratory, ids=ids)}, "ftl", test=0.0, crypto=crypto, epochs=100, l2=0.03
        )  # fmt: skip
        judged = laboratory.x[rest]
        truth = np.array([labels[laboratory.ids[row]] for row in rest])
        score = run.predict_host(replace(laboratory, ids=[laboratory.ids[row] for row in rest], x=judged))
        if crypto == "ckks":
            print(f"{count:18}   {auc(truth, score):8.4f}   under CKKS, {run.figures['seconds']:.0f} s")
            break
        few = np.array([labels[laboratory.ids[row]] for row in known])
        found["transfer"].append(auc(truth, score))
        found["alone"].append(auc(truth, alone(laboratory.x[known], few, judged)))
        print(f"{count:18}   {found['transfer'][-1]:8.4f}   {found['alone'][-1]:16.4f}", flush=True)
    draw(counts, found, given.picture)
    print(given.picture)


def draw(counts: list[int], found: dict[str, list[float]], path: str) -> None:
    """AUC by the number of common patients."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axes = figure.subplots()
    axes.plot(counts, found["transfer"], "o-", color="#0f766e", label="transfer from the clinic")
    axes.plot(
        counts, found["alone"], "s--", color="#9aa5b1", label="laboratory, were it told their diagnoses"
    )
    axes.set(xlabel="patients in common", ylabel="AUC on the laboratory's other patients", xscale="log")
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
