"""Whose adapters are averaged right? Perplexity on unseen text for every method of adapters, in one table and picture.

    python benchmarks/large.py [--seeds 3] [--rounds 8] [--steps 5] [--only "fedit,flora"] [--quick] [--differ]

A byte-level GPT of 0.87 million parameters, trained first on what all other roles of tiny Shakespeare say. Then the
20 roles with the most text are clients: windows of 64 bytes, batches of 8, AdamW with cosine over rounds, all roles
in each round, a few steps of each. Adapters are LoRA of rank 8 and alpha 16 on all linear layers but the last. Judged
is the last tenth of each role's text, which nobody trains on: the perplexity of each role, their mean, and that of
the best and of the worst tenth of them; of personal methods with each role's own model. `centralised` reads all
roles' text in one place, in as many steps as a round has in sum. Every finished run is kept in
benchmarks/results/large.json and found there again. `--quick` is one seed, two rounds and few methods, and stores
nothing.

`--differ` makes roles that differ, in a table of its own (large-differ): Of the ten roles with the most text every
other one is printed in capitals, all that it says, to train on and unseen. That is made, as rotated digits are: the
first training has read capitals at the beginning of lines and names alone. Settings are those of the other
table but for two. Step sizes: of 0.002, 0.005 and 0.01 FedIT was best with the last and FedSA with the second (first
seed), and shared and personal methods take these. FEDORA always follows its neighbours, and labels count for more in
its sketches, since numbers of tokens are no quantities.
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
from atoll.data import Dataset, FederatedData, Samples

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
SOME = 10
SHARED, PERSONAL = {**ADAPTED, "lr": 1e-2}, {**ADAPTED, "lr": 5e-3}
DIFFER: Mapping[str, Mapping[str, Any]] = {
    "local, adapters": {**PERSONAL, "method": "local"},
    "fedit": {**SHARED, "method": "fedit"},
    "fedex": {**SHARED, "method": "fedex"},
    "fedsa": {**PERSONAL, "method": "fedsa"},
    "fedora": {**PERSONAL, "method": "fedora", "gate": "always", "label_scale": 1e3},
}
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


def losses_of(model: nn.Module, text: Samples) -> torch.Tensor:
    """The loss of each window, a mean over its bytes."""
    with torch.no_grad():
        logits = model.eval()(text.inputs)
    return nn.functional.cross_entropy(logits.transpose(1, 2), text.targets, reduction="none").mean(1)


def by_role(model: nn.Module) -> list[float]:
    """The perplexity of each role's unseen text."""
    data = atoll.data.load(DATA)
    assert data.test is not None
    losses = losses_of(model, data.test)
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


def differing() -> tuple[FederatedData, list[bool]]:
    """Roles of which every other one is printed in capitals, and which are."""
    data = atoll.data.load(f"shakespeare:bytes,{WINDOW},{SOME}")
    assert data.test is not None
    loud = np.unique(data.columns["role"])[1::2]

    def printed(text: Samples, roles: np.ndarray[Any, Any]) -> Samples:
        rows = torch.from_numpy(np.isin(roles, loud))[:, None]
        both = (torch.where(rows & (x >= ord("a")) & (x <= ord("z")), x - 32, x) for x in text)
        return Samples(*both)

    who, tests = data.columns["role"], data.test_columns["role"]
    made = Dataset(
        "shakespeare, half in capitals", printed(data.train, who), printed(data.test, tests), classes=256,
        columns={"role": who}, natural="role",
    )  # fmt: skip
    made.test_columns = {"role": tests}
    roles = made.partition("natural")
    return roles, [name in loud for name in roles.names]


def of_both(models: Sequence[nn.Module], roles: FederatedData, loud: Sequence[bool]) -> dict[str, float]:
    """The perplexity of roles as they are and of those in capitals, each with its own model of these, and the mean."""
    found = np.array(
        [
            math.exp(losses_of(model, roles.samples(k, "test")).mean())  # type: ignore[arg-type]
            for k, model in enumerate(models)
        ]
    )
    upper = np.array(loud)
    return {
        "mean": float(found.mean()), "plain": float(found[~upper].mean()), "capitals": float(found[upper].mean())
    }  # fmt: skip


def play_differing(name: str, start: Path, rounds: int, steps: int, seed: int) -> dict[str, float]:
    """A row of the table of roles that differ."""
    began = time.process_time()
    roles, loud = differing()
    common = {key: value for key, value in COMMON.items() if key not in ("data", "model", "progress")}
    given = {**common, **DIFFER[name], "cohort": SOME, "steps": steps, **more(start, rounds, seed)}
    federation = atoll.Federation(atoll.models.build(MODEL, (WINDOW,), 256), roles, **given)
    run = federation.fit(progress=False)
    return {
        **of_both([federation.personal(k) for k in range(SOME)], roles, loud),
        "up": float(np.mean([each.bytes_up for each in run.rounds])),
        "down": float(np.mean([each.bytes_down for each in run.rounds])),
        "seconds": time.process_time() - began,
    }


SPLIT = {"p10": "best tenth", "p90": "worst tenth"}
BOTH = {"plain": "as they are", "capitals": "in capitals"}


def table(found: Mapping[str, Sequence[Mapping[str, float]]], parts: Mapping[str, str]) -> list[str]:
    """The rows as Markdown, the lowest mean first; `parts` names the figures of some of the roles."""
    lines = [
        f"| method | perplexity, mean over roles | {' | '.join(parts.values())} | MB up a round | MB down | CPU s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in sorted(found, key=lambda name: np.mean([each["mean"] for each in found[name]])):
        means = {key: np.mean([each[key] for each in found[name]]) for key in found[name][0]}
        spread = (
            f" ± {np.std([each['mean'] for each in found[name]], ddof=1):.3f}" if len(found[name]) > 1 else ""
        )
        lines.append(
            f"| {name} | {means['mean']:.3f}{spread} | {' | '.join(f'{means[part]:.3f}' for part in parts)} |"
            f" {means['up'] / 1e6:.3f} | {means['down'] / 1e6:.3f} | {means['seconds']:.0f} |"
        )
    return lines


def picture(found: Mapping[str, Sequence[Mapping[str, float]]], start: float, path: Path) -> None:
    """Perplexity over what a round sends."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "atoll"
    figure, axes = plt.subplots(figsize=(9, 4.6))
    marks = iter("osD^v<>Ph*X" * 2)
    for name, rows in sorted(found.items(), key=lambda item: np.mean([each["mean"] for each in item[1]])):
        sent = np.mean([each["up"] + each["down"] for each in rows]) / 1e6
        value = np.mean([each["mean"] for each in rows])
        if sent < 1e-3:
            axes.axhline(value, color="grey", linewidth=0.8, linestyle=":")
            axes.annotate(
                name, (0.012, value), xytext=(0, 2), textcoords="offset points", fontsize=7, color="grey"
            )
            continue
        axes.plot(sent, value, next(marks), label=name)
    axes.axhline(start, color="grey", linewidth=0.8)
    axes.annotate(
        "before", (0.012, start), xytext=(0, 2), textcoords="offset points", fontsize=7, color="grey"
    )
    axes.set_xscale("log")
    axes.set_xlim(left=0.01)
    axes.set_xlabel("MB of a round, up and down, all roles")
    axes.set_ylabel("perplexity of unseen text, mean over roles")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), title="lowest first")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def picture_differing(found: Mapping[str, Sequence[Mapping[str, float]]], path: Path) -> None:
    """Perplexity of both sorts of roles, a line a method."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "atoll"
    figure, axes = plt.subplots(figsize=(8, 3.2))
    names = sorted(found, key=lambda name: -np.mean([each["mean"] for each in found[name]]))
    for part, color in (("plain", "#0072b2"), ("capitals", "#d55e00")):
        for at, name in enumerate(names):
            axes.plot(
                [each[part] for each in found[name]], [at] * len(found[name]), "o", color=color, alpha=0.7
            )
        axes.plot([], [], "o", color=color, label=f"roles {BOTH[part]}")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("perplexity of unseen text, mean over such roles; a dot a seed")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
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
    parser.add_argument("--differ", action="store_true", help="roles of which half are printed in capitals")
    given = parser.parse_args()
    torch.set_num_threads(1)
    every = list(DIFFER) if given.differ else ["centralised", *RUNS]
    names = [each.strip() for each in given.only.split(",")] if given.only else every
    rounds, seeds, epochs = given.rounds, given.seeds, given.epochs
    if given.quick:
        names, rounds, seeds, epochs = list(QUICK), 2, 1, 1
        names = [name for name in names if name in every]
    stem = "large-differ" if given.differ else "large"
    file = RESULTS / f"{stem}.json"
    known = {} if given.quick or not file.exists() else json.loads(file.read_text())
    with tempfile.TemporaryDirectory() as place:
        start = Path(given.base or Path(place) / "base.safetensors")
        if not start.exists():
            base(start, epochs)
        model = atoll.models.build(MODEL, (WINDOW,), 256)
        atoll.models.begin_from(model, start)
        before = (
            of_both([model] * SOME, *differing())
            if given.differ
            else {"mean": float(np.mean(by_role(model)))}
        )
        print("before: " + ", ".join(f"{part} {value:.3f}" for part, value in before.items()), flush=True)
        for seed in range(seeds):
            for name in names:
                key = f"{name} | {seed} | {rounds} x {given.steps}"
                if key not in known:
                    known[key] = (play_differing if given.differ else play)(
                        name, start, rounds, given.steps, seed
                    )
                    print(f"{key:40} {known[key]['mean']:.3f}  {known[key]['seconds']:.0f} s", flush=True)
                    if not given.quick:
                        file.write_text(json.dumps(known, indent=0) + "\n")
    found = {
        name: [known[f"{name} | {seed} | {rounds} x {given.steps}"] for seed in range(seeds)]
        for name in names
    }
    lines = table(found, BOTH if given.differ else SPLIT)
    print("\n".join(lines))
    if not given.quick:
        first, second = (
            part.strip() for part in (__doc__ or "").partition("[--differ]")[2].split("`--differ` ")
        )
        about = (
            second.partition("(large-differ): ")[2] if given.differ else first.partition("Every finished")[0]
        )
        said = f"{rounds} rounds of {given.steps} steps, {seeds} seeds. Before: " + ", ".join(
            f"{value:.3f} {BOTH.get(part, 'on the mean')}" for part, value in before.items()
        )
        title = "Adapters of roles that differ" if given.differ else "Adapters"
        (RESULTS / f"{stem}.md").write_text(
            "\n".join(
                [
                    f"# {title}",
                    "",
                    about.strip(),
                    "",
                    f"{said}.",
                    "",
                    *lines,
                    "",
                    f"![perplexity]({stem}.svg)",
                    "",
                ]
            )
        )
        if given.differ:
            picture_differing(found, RESULTS / f"{stem}.svg")
        else:
            picture(found, before["mean"], RESULTS / f"{stem}.svg")


if __name__ == "__main__":
    main()
