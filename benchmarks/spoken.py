"""Digits that 36 voices speak (synthetic speech): what is learned of thirty of them, and known of six others.

    python benchmarks/spoken.py                          # all methods, seeds 0, 1 and 2
    python benchmarks/spoken.py --methods fedavg-ft      # FedAvg, and what fine-tuning makes of it
    python benchmarks/spoken.py --choose                 # how the settings were chosen: without the six

`--choose` holds a quarter of the thirty voices out in turn, a voice and its variants together, and tells how many of
their digits FedAvg of the others gets right: the six voices of the test have no say in the settings. The global model
of `fedavg-ft` and of `ditto` is FedAvg's. Needs spoken-digits (ATOLL_DATA). `--write` keeps the table in
results/spoken.md. Accuracies are in %, means over the seeds with all of them in brackets; seconds are of the
processor, on one core.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import atoll
from atoll.data.samples import Samples, concatenate

SETTING: dict[str, Any] = {
    "data": "spoken-digits", "rounds": 160, "cohort": 10, "epochs": 2, "batch_size": 16, "lr": 0.03, "momentum": 0.9,
    "schedule": "cosine:160",
    "augment": "shift:3 + band-shift:2 + time-mask:6 + frequency-mask:4",
    "engine": "loop", "runs": None, "eval_every": 0,
}  # fmt: skip
PLAIN = "shift:3 + time-mask:6 + frequency-mask:4"
CHOICES: dict[str, dict[str, Any]] = {
    "as below": {},
    "without band-shift": {"augment": PLAIN},
    "without band-shift, lr 0.05": {"augment": PLAIN, "lr": 0.05},
    "without band-shift, 240 rounds": {"augment": PLAIN, "rounds": 240, "schedule": "cosine:240"},
    "80 rounds": {"rounds": 80, "schedule": "cosine:80"},
    "80 rounds, without band-shift": {"augment": PLAIN, "rounds": 80, "schedule": "cosine:80"},
}
FOLDS = 4
METHODS: dict[str, dict[str, Any]] = {
    "fedavg-ft": {"finetune_epochs": 3, "finetune_lr": 0.01},
    "ditto": {"lam": 1.0},
    "fedora": {"validation": 0.2},
    "local": {},
}
HEAD = (
    "method",
    "voices that never trained",
    "known voices, one model",
    "known voices, own models",
    "seconds",
)


def played(method: str, seed: int) -> tuple[float, float, float, float]:
    """Accuracies of the global model on unseen voices and on known ones, of own models on known ones; seconds."""
    start = time.process_time()
    experiment = atoll.Experiment.read(**{**SETTING, **METHODS[method], "method": method, "seed": seed})
    judged = experiment.build().fit(progress=False).evaluation
    assert judged is not None
    nan = float("nan")
    return (
        nan if method == "local" else judged.overall["accuracy"],  # which trains no model for all
        nan if method == "local" else judged.clients["accuracy"].mean,
        judged.personal["accuracy"].mean if judged.personal else nan,
        time.process_time() - start,
    )


def central(seed: int) -> tuple[float, float, float, float]:
    """The same of one model that is trained on what all thirty voices have, for as many epochs in sum."""
    start = time.process_time()
    voices = atoll.data.load("spoken-digits").partition("natural", seed=seed)
    inner, outer = (
        concatenate([part for k in range(len(voices)) if (part := voices.samples(k, split)) is not None])
        for split in ("train", "test")
    )
    settings = {key: SETTING[key] for key in ("batch_size", "lr", "momentum")}
    epochs = SETTING["rounds"] * SETTING["epochs"] * SETTING["cohort"] // len(voices)
    data = atoll.data.from_clients({"all": tuple(inner)}, test=None, classes=10).augment(
        str(SETTING["augment"])
    )
    network = atoll.models.build("auto", (32, 39), 10)
    run = atoll.Federation(
        network,
        data,
        "fedavg",
        rounds=epochs,
        schedule=f"cosine:{epochs}",
        seed=seed,
        engine="loop",
        eval_every=0,
        runs=None,
        **settings,
    ).fit(progress=False)

    def accuracy(test: Samples) -> float:
        with torch.no_grad():
            return float((run.model(test.inputs).argmax(1) == test.targets).float().mean())

    assert voices.test_set is not None
    return accuracy(voices.test_set), accuracy(outer), float("nan"), time.process_time() - start


def chosen(setting: dict[str, Any], fold: int, seed: int) -> float:
    """Accuracy on a quarter of the thirty voices of the global model of the others."""
    whole = atoll.data.load("spoken-digits")
    voices = whole.columns["voice"]
    kin = {str(voice): re.sub(r"\d+$|Robot", "", str(voice)) for voice in sorted(set(voices.tolist()))}
    kins = sorted(set(kin.values()))
    held = [voice for voice in kin if kins.index(kin[voice]) % FOLDS == fold]

    def of(names: Sequence[str]) -> Samples:
        return whole.train.take(np.flatnonzero(np.isin(voices, names)))

    clients = {voice: tuple(of([voice])) for voice in kin if voice not in held}
    settings = {**SETTING, "engine": "batched", **setting}
    data = atoll.data.from_clients(clients, test=(of(held).inputs, of(held).targets), classes=10).augment(
        settings.pop("augment")
    )
    del settings["data"]
    network = atoll.models.build("auto", (32, 39), 10)
    judged = atoll.Federation(network, data, "fedavg", seed=seed, **settings).fit(progress=False).evaluation
    assert judged is not None
    return float(judged.overall["accuracy"])


def figures(values: Sequence[float]) -> str:
    shown = [100 * value for value in values]
    if any(value != value for value in shown):
        return "-"
    return f"{statistics.fmean(shown):.1f} ({', '.join(f'{value:.1f}' for value in shown)})"


def line(name: str, found: Sequence[tuple[float, float, float, float]]) -> str:
    unseen, known, own, seconds = zip(*found, strict=True)
    cells = [name, figures(unseen), figures(known), figures(own), f"{min(seconds):.0f}-{max(seconds):.0f}"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", default=",".join([*METHODS, "centralised"]))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--choose", action="store_true")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    seeds = [int(seed) for seed in given.seeds.split(",")]
    if given.choose:
        print("| settings | voices held out, a quarter in turn |", "|---|---|", sep="\n", flush=True)
        for name, setting in CHOICES.items():
            scores = [chosen(setting, fold, seeds[0]) for fold in range(FOLDS)]
            print(f"| {name} | {figures(scores)} |", flush=True)
        return
    lines = [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
    print(*lines, sep="\n", flush=True)
    for method in given.methods.split(","):
        found = []
        for seed in seeds:
            found.append(central(seed) if method == "centralised" else played(method, seed))
            print(method, seed, found[-1], flush=True)
        lines.append(line(method, found))
        print(lines[-1], flush=True)
    if given.write:
        Path(__file__).with_name("results").joinpath("spoken.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
