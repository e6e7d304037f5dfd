"""How soon does a model reach its target on devices of unequal speed? One table of policies, and a picture.

    python benchmarks/clock.py mnist [--seeds 3] [--rounds 400] [--only sync,fedbuff] [--write]
    python benchmarks/clock.py har --write

Virtual seconds to the target, over seeds, for rounds that wait for all, ask more, have a deadline, choose by speed or
utility, fit local steps to devices, and for asynchronous servers. MNIST is divided among 100 clients by Dir(0.3), HAR
by its 30 people. Speeds and bandwidths are log-normal with sigma 1.5 (`atoll.clock`); nothing here depends on how fast
this machine is. `--write` stores benchmarks/results/clock-NAME.md and .svg.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import atoll
from atoll.results import Run

RESULTS = Path(__file__).parent / "results"

POLICIES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "sync": ("wait for all", {}),
    "over": ("ask 1.3 times as many", {"over_select": 1.3}),
    "partial": ("deadline, partial work", {"deadline": "share:0.5", "late": "partial"}),
    "tifl": ("TiFL, 5 tiers", {"choose": "tifl:5"}),
    "oort": ("Oort, 1.3 times as many", {"choose": "oort", "over_select": 1.3}),
    "adaptive": ("local steps that fit", {"adaptive": "deadline"}),
    "fedasync": ("FedAsync, polynomial", {"pace": "fedasync:poly,0.5", "concurrency": 20}),
    "fedbuff": ("FedBuff, buffer of 10", {"pace": "buffered:10", "concurrency": 30}),
}

SETTINGS: Mapping[str, dict[str, Any]] = {
    "mnist": {
        "data": "mnist", "partition": "dirichlet:0.3", "clients": 100, "cohort": 10, "model": "mlp:200",
        "lr": 0.1, "epochs": 2, "batch_size": 32, "target": "accuracy:0.95",
    },
    "har": {
        "data": "har", "partition": "natural", "cohort": 10, "model": "mlp:100", "lr": 0.05, "epochs": 2,
        "batch_size": 32, "target": "accuracy:0.8",
    },
}  # fmt: skip


def play(name: str, policy: str, seed: int, rounds: int) -> Run:
    """One run, to the target or to the end."""
    _, further = POLICIES[policy]
    many = rounds * 10 if policy == "fedasync" else rounds  # a step for every reply
    every = 10 if policy == "fedasync" else 1
    return atoll.run(
        method="fedavg", devices="lognormal:1.5", seed=seed, rounds=many, eval_every=every, progress=False,
        **SETTINGS[name], **further,
    )  # fmt: skip


def mean(values: list[float | None], digits: int = 0) -> str:
    """Mean and standard deviation; a dash where a run did not get there."""
    if any(value is None for value in values):
        return "–"
    known = [float(value) for value in values if value is not None]
    spread = f" ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{statistics.fmean(known):.{digits}f}{spread}"


def table(name: str, runs: Mapping[str, list[Run]]) -> str:
    """The policies as a table of Markdown."""
    lines = [
        f"{SETTINGS[name]['target']}, {len(next(iter(runs.values())))} seeds; ratio: how many times sooner than to wait"
        " for all",
        "",
        "| policy | virtual s to target | ratio | server steps | kJ a run | wasted | staleness | participation |",
        "|---|---|---|---|---|---|---|---|",
    ]
    first = [run.to_dict()["target_virtual_seconds"] for run in runs.get("sync", [])]
    for policy, found in runs.items():
        facts = [run.to_dict() for run in found]
        took = [each["target_virtual_seconds"] for each in facts]
        ratio = "–"
        if first and all(first) and all(took):
            ratio = f"{statistics.fmean(a / b for a, b in zip(first, took, strict=True)):.2f}"
        cells = [
            POLICIES[policy][0],
            mean(took),
            ratio,
            mean([each["target_round"] for each in facts]),
            mean([each["energy"] / 1000 for each in facts], 1),
            f"{100 * statistics.fmean(each['wasted'] for each in facts):.0f} %",
            f"{statistics.fmean(each['staleness'] for each in facts):.1f}",
            f"{statistics.fmean(each['participation'] for each in facts):.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def picture(name: str, runs: Mapping[str, list[Run]], file: Path) -> None:
    """Accuracy against virtual seconds, the first seed of each policy."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for policy, found in runs.items():
        judged = [r for r in found[0].rounds if r.evaluation is not None and r.clock is not None]
        times = [r.clock.ended for r in judged if r.clock]
        axes.plot(
            times,
            [100 * r.evaluation.overall["accuracy"] for r in judged if r.evaluation],
            label=POLICIES[policy][0],
        )
    axes.set(xscale="log", xlabel="virtual seconds", ylabel="accuracy on the test set, %", title=name)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=[*SETTINGS])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--only", default=",".join(POLICIES))
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    runs: dict[str, list[Run]] = {}
    for policy in given.only.split(","):
        for seed in range(given.seeds):
            run = play(given.name, policy, seed, given.rounds)
            runs.setdefault(policy, []).append(run)
            took = run.clocked()["target_virtual_seconds"]
            print(
                f"{policy} seed {seed}: {took and round(took)} virtual s, {run.seconds:.0f} s here",
                flush=True,
            )
    text = table(given.name, runs)
    print(f"\n{text}")
    if given.write:
        (RESULTS / f"clock-{given.name}.md").write_text(text)
        picture(given.name, runs, RESULTS / f"clock-{given.name}.svg")


if __name__ == "__main__":
    main()
