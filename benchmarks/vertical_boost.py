"""How long does a tree take, encrypted and open? SecureBoost on columns that two parties share.

    ATOLL_DATA=... python benchmarks/vertical_boost.py [--trees 5] [--ciphers none,ou,paillier] [--workers 2]

a9a (columns 0..60 are the guest's, 61..122 the host's) with depth 6, 255 bins, lr 0.1; default_credit and breast with
depth 3, 32 bins, lr 0.3. Both parties run in this process, in turn, so seconds are those of all parties together;
workers share encryption and sums among processes. The first tree, which makes tables, is not counted. CPU seconds have
those of worker processes in them. AUC is that of rows that are learned.
"""

from __future__ import annotations

import argparse
import csv
import lzma
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from atoll.parties import Played, play
from atoll.vertical.figures import auc
from atoll.vertical.protocol import Case, Progress
from atoll.vertical.secureboost import SecureBoost
from atoll.vertical.side import Side

ROOT = Path(os.environ.get("ATOLL_DATA", "."))

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "a9a": {"depth": 6, "lr": 0.1, "bins": 255},
    "default_credit": {"depth": 3, "lr": 0.3, "bins": 32},
    "breast": {"depth": 3, "lr": 0.3, "bins": 32},
}


def a9a() -> tuple[Side, Side]:
    """Adult, one-hot: 32,561 rows."""
    x, y = [], []
    for part in ("p0", "p1"):
        with lzma.open(ROOT / "adult-a9a" / f"a9a_horizontal_{part}.xz", "rt") as file:
            for line in file:
                label, *entries = line.split()
                row = np.zeros(123)
                row[[int(entry.partition(":")[0]) - 1 for entry in entries]] = 1
                x.append(row)
                y.append(float(label) > 0)
    whole, names = np.array(x), tuple(f"x{at}" for at in range(123))
    return Side(whole[:, :61], names[:61], np.array(y, np.float64)), Side(whole[:, 61:], names[61:])


def fate(name: str) -> tuple[Side, Side]:
    """One of FATE's data sets, in the order of its ids."""
    found = []
    for part in ("guest", "host"):
        with lzma.open(ROOT / "fate-vertical" / f"{name}_hetero_{part}.csv.xz", "rt") as file:
            head, *rows = csv.reader(file)
        table = np.array(rows, np.float64)
        found.append((head, table[np.argsort(table[:, 0])]))
    (columns, guest), (more, host) = found
    return Side(guest[:, 2:], tuple(columns[2:]), guest[:, 1]), Side(host[:, 1:], tuple(more[1:]))


def seconds() -> tuple[float, float]:
    """CPU seconds of this process and those it has forked, and the clock."""
    spent = os.times()
    return sum(spent[:4]), time.perf_counter()


def measure(
    boost: SecureBoost, sides: tuple[Side, Side], crypto: str
) -> tuple[list[float], list[float], Played, float]:
    """CPU and wall seconds of each tree but the first, what was said, and the AUC."""
    guest, host = sides
    case = Case("binary", crypto=crypto)
    marks: list[tuple[float, float]] = []
    progress = Progress(tell=lambda *_: marks.append(seconds()))
    played = play(
        {
            "guest": lambda link: boost.guest(link, guest, case, progress),
            "host": lambda link: boost.host(link, host, case, Progress()),
        }
    )
    halves = played.results
    scored = play(
        {
            "guest": lambda link: boost.score(link, guest, case, halves["guest"]),
            "host": lambda link: boost.answer(link, host, case, halves["host"]),
        }
    ).results["guest"]
    cpu, wall = np.diff(np.array(marks), axis=0).T
    return cpu.tolist(), wall.tolist(), played, auc(guest.y, scored)  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=SETTINGS, default="a9a")
    parser.add_argument("--trees", type=int, default=5)
    parser.add_argument("--ciphers", default="none,ou")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--goss", default="1,0.1", help="shares of rows with large gradients, and of the others"
    )
    given = parser.parse_args()
    sides = a9a() if given.data == "a9a" else fate(given.data)
    top, rest = map(float, given.goss.split(","))
    rows, load = len(sides[0]), os.getloadavg()[0]
    print(f"{given.data}: {rows:,} rows, {given.trees} trees, {given.workers} workers, load {load:.1f}")
    print("cipher         CPU s/tree  wall s/tree  CPU ratio     MB/tree  AUC")
    plain = None
    for crypto in given.ciphers.split(","):
        boost = SecureBoost(
            trees=given.trees, workers=given.workers, goss_top=top, goss_rest=rest, **SETTINGS[given.data]
        )
        cpu, wall, played, quality = measure(boost, sides, crypto)
        best = min(cpu)
        plain = plain or best
        sent = sum(played.transcript.nbytes().values()) / given.trees / 1e6
        print(f"{crypto:14} {best:10.3f} {min(wall):12.3f} {best / plain:10.1f} {sent:11.2f}  {quality:.4f}")


if __name__ == "__main__":
    main()
