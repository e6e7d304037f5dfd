"""Credit default: three banks with other customers, and a bank and a shop with other columns.

    python examples/finance/run.py [--quick] [--seeds 5] [--out DIR]

Data: default of credit card clients (UCI; `atoll data get credit-default`, `ATOLL_DATA` says where). The settings are
in settings.toml beside this file; docs/applications/finance.md tells what comes of it.
Out: two tables, and finance.png.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from pathlib import Path

import numpy as np

import atoll

sys.path.insert(0, str(Path(__file__).parent))
import columns
import rows

try:
    from matplotlib.figure import Figure
except ImportError:
    sys.exit(str(atoll.MissingExtraError("matplotlib", "plots", "drawing the picture")))

COLOURS = {
    "each alone": "#9aa5b1", "federated": "#0f766e", "secure sum": "#14b8a6", "and private": "#c2410c",
    "pooled": "#1f2937",
}  # fmt: skip


def draw(every: list[rows.Figures], alone: columns.Fitted, both: columns.Fitted, path: Path) -> None:
    """Both measures of the banks, a dot a division, and what the shop adds."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    axes = figure.subplots(1, 3, width_ratios=[2, 2, 1])
    titles = ("AUC, mean of three banks", "defaulters found at 1 % false alarms")
    for measure, (axis, title) in enumerate(zip(axes, titles, strict=False)):
        for place, name in enumerate(every[0]):
            values = np.array([figures[name][:, measure].mean() for figures in every])
            axis.bar(place, values.mean(), color=COLOURS[name], alpha=0.85)
            axis.plot([place] * len(values), values, "k.", markersize=4)
        axis.set_xticks(range(len(every[0])), [name.replace(" ", "\n") for name in every[0]], fontsize=8)
        axis.set_title(title, fontsize=10)
    axes[0].set_ylim(bottom=0.5)
    axes[2].bar(
        ["bank", "bank\nand shop"], [alone.figures["auc"], both.figures["auc"]], color=["#9aa5b1", "#0f766e"]
    )
    axes[2].set_ylim(0.5, 0.85)
    axes[2].set_title("AUC, by columns", fontsize=10)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one division, few rounds, few trees")
    parser.add_argument("--seeds", type=int, default=5, help="divisions of the customers (default 5)")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the picture (default: here)")
    options = parser.parse_args()
    if options.seeds < 1:
        parser.error("--seeds must be 1 or more")
    options.out.mkdir(parents=True, exist_ok=True)
    settings = tomllib.loads(Path(__file__).with_name("settings.toml").read_text("utf-8"))
    by_rows, by_columns = settings["banks"], settings["columns"]
    rounds = 4 if options.quick else by_rows["rounds"]
    every = []
    for seed in range(1 if options.quick else options.seeds):
        figures, results = rows.learn(by_rows, rounds, seed)
        every.append(figures)
    print(rows.told(every, results), flush=True)
    if options.quick:
        by_columns = {**by_columns, "trees": 4}
    alone, both, words = columns.learn(by_columns, 1500 if options.quick else 4000)
    print(f"\n{words}\n")
    path = options.out / "finance.png"
    draw(every, alone, both, path)
    print(path)


if __name__ == "__main__":
    try:
        main()
    except (atoll.AtollError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))
