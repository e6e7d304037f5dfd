"""Whose adapters are averaged right? Perplexity on unseen text for every method of adapters, in one table and picture.

    python benchmarks/large.py [--seeds 3] [--rounds 8] [--steps 5] [--only "fedit,flora"] [--quick]

A byte-level GPT of 0.87 million parameters, trained first on what all other roles of tiny Shakespeare say. Then the
20 roles with the most text are clients: windows of 64 bytes, batches of 8, AdamW with cosine over rounds, all roles
in each round, a few steps of each. Adapters are LoRA of rank 8 and alpha 16 on all linear layers but the last. Judged
is the last tenth of each role's text, which nobody trains on: the perplexity of each role, their mean, and that of
the best and of the worst tenth of them; of personal methods with each role's own model. `centralised` reads all
roles' text in one place, in as many steps as a round has in sum. Every finished run is kept in
benchmarks/results/large.json and found there again. `--quick` is one seed, two rounds and few methods, and stores
nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import atoll

RESULTS = Path(__file__).parent / "results"
ROLES, WINDOW, MODEL = 20, 64, "gpt:4,128"
DATA = f"shakespeare:bytes,{WINDOW},{ROLES}"
FULL, ADAPTED = {"lr": 3e-4}, {"adapter": "lora:8,16", "lr": 2e-3}
UNEQUAL = {**ADAPTED, "adapter": "lora:16,32 / lora:8,16 / lora:4,8"}

RUNS: Mapping[str, Mapping[str, Any]] = {
    "fedavg": {**FULL, "method": "fedavg"},
    "local": {**FULL, "method": "local"},
    "local, adapters": {**ADAPTED, "method": "local"},
    "fedit": {**ADAPTED, "method": "fedit"},
    "ffa": {**ADAPTED, "method": "ffa"},
    "rolora": {**ADAPTED, "method": "rolora"},
    "flora": {**ADAPTED, "method": "flora"},
    "fedex": {**ADAPTED, "method": "fedex"},
    "flexlora": {**ADAPTED, "method": "flexlora"},
    "flexlora, unequal": {**UNEQUAL, "method": "flexlora"},
    "hetlora, unequal": {**UNEQUAL, "method": "hetlora"},
    "flora, unequal": {**UNEQUAL, "method": "flora"},
    "fedsa": {**ADAPTED, "method": "fedsa"},
    "fedora": {**ADAPTED, "method": "fedora", "validation": 0.1},
    "fedkseed": {**ADAPTED, "method": "fedkseed", "lr": 1e-3},
}
QUICK = ("fedavg", "fedit", "flora", "fedsa")
COMMON: Mapping[str, Any] = {
    "data": DATA, "model": MODEL, "cohort": ROLES, "batch_size": 8, "optimizer": "adamw", "eval_every": 0,
    "progress": False, "runs": "none", "engine": "batched",
}  # fmt: skip


def base(path: Path, epochs: int) -> None:
    """The model that all begin with, from the text of all other roles."""
    everybody, ours = atoll.data.load(f"shakespeare:bytes,{WINDOW}"), atoll.data.load(DATA)
    others = ~np.isin(everybody.columns["role"], np.unique(ours.columns["role"]))
    rows, text = torch.from_numpy(np.flatnonzero(others)), everybody.train
    data = atoll.data.from_arrays(text.inputs[rows], text.targets[rows], classes=256).partition(
        atoll.data.IID(1), seed=0
    )
    method = atoll.FedAvg(optimizer="adamw", lr=1e-3, batch_size=16, schedule=f"cosine:{epochs}")
    model = atoll.models.build(MODEL, (WINDOW,), 256)
    atoll.Federation(model, data, method, rounds=epochs, eval_every=0, engine="batched").fit(
        progress=False
    ).save(path)


def by_role(model: nn.Module) -> list[float]:
    """The perplexity of each role's unseen text."""
    data = atoll.data.load(DATA)
    assert data.test is not None
    with torch.no_grad():
        logits = model.eval()(data.test.inputs)
    losses = nn.functional.cross_entropy(logits.transpose(1, 2), data.test.targets, reduction="none").mean(1)
    of = data.test_columns["role"]
    return [math.exp(losses[torch.from_numpy(of == role)].mean()) for role in np.unique(of)]


def more(start: Path, rounds: int, seed: int) -> dict[str, Any]:
    """What else all runs have in common."""
    return {"base": str(start), "rounds": rounds, "schedule": f"cosine:{rounds}", "seed": seed}


def centralised(start: Path, rounds: int, steps: int, seed: int) -> dict[str, float]:
    """All text in one place."""
    began = time.process_time()
    given = {**COMMON, "cohort": 1, "partition": "iid", "clients": 1, "steps": steps * ROLES}
    run = atoll.run(**given, **more(start, rounds, seed), method="fedavg", **FULL)
    found = by_role(run.model)
    return {
        "mean": float(np.mean(found)), "p10": float(np.quantile(found, 0.1)), "p90": float(np.quantile(found, 0.9)),
        "up": 0.0, "down": 0.0, "seconds": time.process_time() - began,
    }  # fmt: skip


def play(name: str, start: Path, rounds: int, steps: int, seed: int) -> dict[str, float]:
    """A row of the table: perplexity, bytes of a round, and seconds of the processor."""
    if name == "centralised":
        return centralised(start, rounds, steps, seed)
    began = time.process_time()
    given = {**COMMON, **RUNS[name], "steps": steps, **more(start, rounds, seed)}
    if name == "fedkseed":
        given.pop("optimizer")
    run = atoll.run(**given)
    assert run.evaluation is not None
    found = run.evaluation.own["perplexity"]
    return {
        "mean": found.mean, "p10": found.p10, "p90": found.p90, "seconds": time.process_time() - began,
        "up": float(np.mean([each.bytes_up for each in run.rounds])),
        "down": float(np.mean([each.bytes_down for each in run.rounds])),
    }  # fmt: skip


def table(found: Mapping[str, Sequence[Mapping[str, float]]]) -> list[str]:
    """The rows as Markdown, the lowest mean first."""
    lines = [
        "| method | perplexity, mean over roles | best tenth | worst tenth | MB up a round | MB down | CPU s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in sorted(found, key=lambda name: np.mean([each["mean"] for each in found[name]])):
        means = {key: np.mean([each[key] for each in found[name]]) for key in found[name][0]}
        spread = (
            f" ± {np.std([each['mean'] for each in found[name]], ddof=1):.3f}" if len(found[name]) > 1 else ""
        )
        lines.append(
            f"| {name} | {means['mean']:.3f}{spread} | {means['p10']:.3f} | {means['p90']:.3f} |"
            f" {means['up'] / 1e6:.3f} | {means['down'] / 1e6:.3f} | {means['seconds']:.0f} |"
        )
    return lines


def picture(found: Mapping[str, Sequence[Mapping[str, float]]], start: float, path: Path) -> None:
    """Perplexity over what a round sends."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "atoll"
    figure, axes = plt.subplots(figsize=(8, 4.6))
    for name, rows in found.items():
        sent = np.mean([each["up"] + each["down"] for each in rows]) / 1e6
        value = np.mean([each["mean"] for each in rows])
        if sent == 0:
            axes.axhline(value, color="grey", linewidth=0.8, linestyle=":")
            axes.annotate(
                name, (0.012, value), xytext=(0, 2), textcoords="offset points", fontsize=7, color="grey"
            )
            continue
        axes.plot(sent, value, "o", color="#0072b2")
        axes.annotate(name, (sent, value), xytext=(5, 3), textcoords="offset points", fontsize=8)
    axes.axhline(start, color="grey", linewidth=0.8)
    axes.annotate(
        "before", (0.012, start), xytext=(0, 2), textcoords="offset points", fontsize=7, color="grey"
    )
    axes.set_xscale("log")
    axes.set_xlim(left=0.01)
    axes.set_xlabel("MB of a round, up and down, all roles")
    axes.set_ylabel("perplexity of unseen text, mean over roles")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=6, help="of the first training")
    parser.add_argument("--only", help="methods, with commas; default all")
    parser.add_argument("--base", help="a file for the model that all begin with; made where it is not there")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    names = [each.strip() for each in given.only.split(",")] if given.only else ["centralised", *RUNS]
    rounds, seeds, epochs = given.rounds, given.seeds, given.epochs
    if given.quick:
        names, rounds, seeds, epochs = list(QUICK), 2, 1, 1
    file = RESULTS / "large.json"
    known = {} if given.quick or not file.exists() else json.loads(file.read_text())
    with tempfile.TemporaryDirectory() as place:
        start = Path(given.base or Path(place) / "base.safetensors")
        if not start.exists():
            base(start, epochs)
        model = atoll.models.build(MODEL, (WINDOW,), 256)
        atoll.models.begin_from(model, start)
        before = by_role(model)
        print(f"before: {np.mean(before):.3f}", flush=True)
        for seed in range(seeds):
            for name in names:
                key = f"{name} | {seed} | {rounds} x {given.steps}"
                if key not in known:
                    known[key] = play(name, start, rounds, given.steps, seed)
                    print(f"{key:40} {known[key]['mean']:.3f}  {known[key]['seconds']:.0f} s", flush=True)
                    if not given.quick:
                        file.write_text(json.dumps(known, indent=0) + "\n")
    found = {
        name: [known[f"{name} | {seed} | {rounds} x {given.steps}"] for seed in range(seeds)]
        for name in names
    }
    lines = table(found)
    print("\n".join(lines))
    if not given.quick:
        about = (__doc__ or "").partition("[--quick]")[2].split("Every finished")[0].strip()
        said = f"{rounds} rounds of {given.steps} steps, {seeds} seeds. Before: {np.mean(before):.3f}."
        (RESULTS / "large.md").write_text(
            "\n".join(
                ["# Adapters", "", about, "", said, "", *lines, "", "![perplexity over bytes](large.svg)", ""]
            )
        )
        picture(found, float(np.mean(before)), RESULTS / "large.svg")


if __name__ == "__main__":
    main()
