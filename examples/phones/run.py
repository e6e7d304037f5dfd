"""Thirty people and their phones: activity recognition with a model of one's own, by a server that waits for nobody.

    python examples/phones/run.py [--quick] [--seeds 3] [--out DIR]

Data: UCI HAR (`atoll data get har`, `ATOLL_DATA` says where), a person a client; methods.py beside this file says how
windows are read, and compares methods. The settings are in settings.toml; docs/applications/phones.md tells what comes
of it. Seconds are virtual ones of phones, which no machine's speed moves (docs/time.md).
Out: a table, and phones.png.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import torch

import atoll

sys.path.insert(0, str(Path(__file__).parent))
from methods import Figure, model, people

Row = tuple[np.ndarray, dict[str, Any]]
"""Each person's accuracy, in per cent, and the run's result."""


def learn(settings: dict[str, dict[str, Any]], rounds: int, seed: int) -> dict[str, Row]:
    """Train in every way on one division of people's windows."""
    data = people(seed)
    common = {**settings["training"], "seed": seed, "eval_every": 0, "engine": "batched", "workers": 1}
    # As much is asked of everybody: a cohort is a third of all, and the server takes a step with half as many replies.
    everybody = {**common, **lasting(rounds)}
    phones = {**common, **settings["phones"], **lasting(3 * rounds)}
    unhurried = {**common, **settings["phones"], **settings["asynchronous"], **lasting(6 * rounds)}
    ways = {
        "alone": (data, {**everybody, "method": "local"}),
        "waiting": (data, {**phones, "method": "fedavg"}),
        "not waiting": (data, {**unhurried, "method": "fedavg"}),
        "int8": (data, {**unhurried, **settings["int8"], "method": "fedavg"}),
        "int8, own models": (data, {**unhurried, **settings["int8"], **settings["own"]}),
        "pooled": (pooled(data), {**everybody, "method": "fedavg"}),
    }
    found = {}
    for name, (where, given) in ways.items():
        run = atoll.Federation(model, where, **given).fit(progress=False)
        judged = run.evaluation
        if name == "pooled":  # the one model, for each person
            judged = atoll.Federation(run.model, data, **everybody).evaluate()
        each = judged.each.get("personal") or judged.each["clients"]
        found[name] = 100 * np.array([each["accuracy"][k] for k in range(len(data))]), run.to_dict()
    return found


def lasting(rounds: int) -> dict[str, Any]:
    """So many rounds, with a rate that falls to a tenth by the end."""
    return {"rounds": rounds, "schedule": f"exponential:{0.1 ** (1 / rounds):.4f}"}


def pooled(data: atoll.FederatedData) -> atoll.FederatedData:
    """Everybody's training windows in one place."""
    parts = [data.samples(person) for person in range(len(data))]
    rows = tuple(torch.cat(each) for each in zip(*parts, strict=True))
    return atoll.data.from_clients({"all": rows}, test=tuple(data.test_set), classes=6, name="pooled")


def told(every: list[dict[str, Row]]) -> str:
    """The table: means over divisions."""
    heads = ("mean", "worst", "below alone", "minutes", "MB", "kJ")
    lines = [f"{'':18}" + "".join(f"{head:>13}" for head in heads)]
    for name in every[0]:
        scores = [found[name][0] for found in every]
        results = [found[name][1] for found in every]
        below = np.mean([(own < found["alone"][0]).mean() for own, found in zip(scores, every, strict=True)])
        cells = [
            f"{np.mean(scores):.1f} %",
            f"{np.mean([own.min() for own in scores]):.1f} %",
            f"{below:.0%}",
        ]
        if results[0].get("virtual_seconds") is None:
            cells += ["", "windows" if name == "pooled" else "0.0", ""]
        else:
            sent = [each["bytes_up"] + each["bytes_down"] for each in results]
            cells += [
                f"{np.mean([each['virtual_seconds'] for each in results]) / 60:.1f}",
                f"{np.mean(sent) / 1e6:.1f}", f"{np.mean([each['energy'] for each in results]) / 1e3:.1f}",
            ]  # fmt: skip
        lines.append(f"{name:18}" + "".join(f"{cell:>13}" for cell in cells))
    return "\n".join([f"30 people, means over {len(every)} division{'s' * (len(every) > 1)}", *lines])


def draw(found: dict[str, Row], path: Path) -> None:
    """Each person's gain over training alone, and what the phones' time and traffic came to."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    alone = found["alone"][0]
    others = [name for name in found if name != "alone"]
    for row, name in enumerate(others):
        gain = np.sort(found[name][0] - alone)
        height = row + 0.5 * (np.arange(len(gain)) / (len(gain) - 1) - 0.5)
        left.scatter(gain, height, s=14, c=np.where(gain < 0, "#D55E00", "#0072B2"), linewidths=0)
        left.plot([gain.mean()] * 2, [row - 0.36, row + 0.36], color="black", linewidth=2)
    left.set_yticks(range(len(others)), others)
    left.axvline(0, color="black", linewidth=0.8)
    left.set_xlabel(f"accuracy minus that of a model trained alone ({alone.mean():.1f} %); a dot is a person")
    timed = [name for name in others if found[name][1].get("virtual_seconds") is not None]
    for name in timed:
        result = found[name][1]
        x, y = result["virtual_seconds"] / 60, (result["bytes_up"] + result["bytes_down"]) / 1e6
        right.plot(x, y, "o", color="#0f766e")
        right.annotate(f" {name}", (x, y), fontsize=9, va="top" if name == "int8" else "bottom")
    right.set(xlabel="minutes of the phones", ylabel="MB, both ways")
    right.margins(x=0.35)
    right.set_xlim(left=0)
    right.set_ylim(bottom=0)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one division, a tenth of the rounds")
    parser.add_argument("--seeds", type=int, default=3, help="divisions of people's windows (default 3)")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the picture (default: here)")
    options = parser.parse_args()
    if options.seeds < 1:
        parser.error("--seeds must be 1 or more")
    options.out.mkdir(parents=True, exist_ok=True)
    settings = tomllib.loads(Path(__file__).with_name("settings.toml").read_text("utf-8"))
    rounds = settings["training"]["rounds"] // (10 if options.quick else 1)
    every = [learn(settings, rounds, seed) for seed in range(1 if options.quick else options.seeds)]
    print(f"{told(every)}\n")
    path = options.out / "phones.png"
    draw(every[0], path)
    print(path)


if __name__ == "__main__":
    try:
        main()
    except (atoll.AtollError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))
