"""Split networks: seconds, bytes and AUC, plain and with what makes messages smaller or tells less.

    ATOLL_DATA=... python benchmarks/vertical_split.py [--epochs 5] [--only "plain|int8"] [--write]

Two parties in one process on one thread, on FATE's vertical splits of breast (569 rows, 10 + 20 columns) and
default_credit (30,000 rows, 13 + 10), 80 % to learn from. Seconds are of the CPU, for both parties together. FATE's
HeteroNN tutorial has 76.96 s for three epochs of breast, over its network. `--write` stores
benchmarks/results/vertical_split.md.
"""

from __future__ import annotations

import argparse
import lzma
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from atoll.parties import play
from atoll.vertical.figures import auc
from atoll.vertical.protocol import Case, Progress
from atoll.vertical.side import Side
from atoll.vertical.splitnn import SplitNN

CASE = Case("binary")
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sum": {"join": "sum"},
    "attention": {"join": "attention"},
    "int8": {"codec": "int8"},
    "topk:0.1": {"codec": "topk:0.1"},
    "FedBCD, 5 local steps": {"local": 5},
    "CELU, 5 local steps of 3 batches": {"local": 5, "cache": 3},
    "max_norm": {"labels": "max_norm"},
    "MARVELL, power 4": {"labels": "marvell:4"},
    "response, epsilon 1": {"labels": "response:1"},
    "clip 1, noise 1": {"clip": 1.0, "noise": 1.0},
}


def table(name: str) -> tuple[tuple[str, ...], Any]:
    path = Path(os.environ["ATOLL_DATA"]) / "fate-vertical" / f"{name}.csv.xz"
    with lzma.open(path, "rt") as file:
        names = file.readline().strip().split(",")
        values = np.loadtxt(file, delimiter=",")
    return tuple(names), values[np.argsort(values[:, 0])]


def data(name: str) -> tuple[tuple[Side, Side], tuple[Side, Side]]:
    """Guest and host of the rows to learn from, and of the others."""
    (mine, guest), (theirs, host) = table(f"{name}_hetero_guest"), table(f"{name}_hetero_host")
    sides = Side(guest[:, 2:], mine[2:], guest[:, 1]), Side(host[:, 1:], theirs[1:])
    chance, test = np.random.default_rng(0), np.zeros(len(guest), dtype=bool)
    for label in (0, 1):
        rows = chance.permutation(np.flatnonzero(guest[:, 1] == label))
        test[rows[: round(len(rows) / 5)]] = True
    one, other = ([side.take(rows) for side in sides] for rows in (~test, test))
    return (one[0], one[1]), (other[0], other[1])


def row(name: str, what: str, how: SplitNN) -> str:
    """A line of the table."""
    (guest, host), (more, theirs) = data(name)
    told: dict[str, float] = {}

    def tell(number: int, half: Any, figures: Mapping[str, float]) -> None:
        told.update(figures)

    began = time.process_time()
    played = play(
        {
            "guest": lambda link: how.guest(link, guest, CASE, Progress(tell=tell)),
            "host": lambda link: how.host(link, host, CASE, Progress()),
        }
    )
    seconds = (time.process_time() - began) / how.epochs
    halves, sent = played.results, sum(played.transcript.nbytes().values()) / how.epochs
    score = play(
        {
            "guest": lambda link: how.score(link, more, CASE, halves["guest"]),
            "host": lambda link: how.answer(link, theirs, CASE, halves["host"]),
        }
    ).results["guest"]
    known = ("leak", "leak_bound", "leak_bound_all", "epsilon", "label_epsilon")
    notes = ", ".join(f"{key} {told[key]:.3g}" for key in known if key in told)
    assert more.y is not None
    return (
        f"| {name} | {what} | {how.epochs} | {seconds:.3f} | {sent / 1e6:.3f} MB | {told['auc']:.4f} "
        f"| {auc(more.y, score):.4f} | {notes} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--only", help="variants, with | between them")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "| data | variant | epochs | CPU s an epoch | sent an epoch | AUC in the last epoch | AUC, other rows | told |",
        "|---|---|---|---|---|---|---|---|",
        row("breast", "plain", SplitNN(epochs=3, batch=32)),
    ]
    print("\n".join(lines), flush=True)
    for what, settings in VARIANTS.items():
        if given.only is None or what in given.only.split("|"):
            lines.append(row("default_credit", what, SplitNN(epochs=given.epochs, **settings)))
            print(lines[-1], flush=True)
    if given.write:
        place = Path(__file__).parent / "results" / "vertical_split.md"
        place.write_text("\n".join(["# Split networks", "", *lines, ""]))


if __name__ == "__main__":
    main()
