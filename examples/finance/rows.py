"""Three banks with the same columns and other customers: what each gains, and what secrecy and privacy cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

import atoll
from atoll.data import from_clients

BANKS = ("savings", "retail", "private")
"""By their customers' credit limits: the lowest third, the middle one, the highest."""
MEASURES = ("auc", "tpr@0.01")

Figures = dict[str, np.ndarray]
"""Of each way to learn: figures [bank, measure]."""


def banks(share: float, test: float, seed: int) -> atoll.FederatedData:
    """The three banks; of those who did not pay as many stay as make this share of a bank's customers."""
    table = atoll.data.load("credit-default").train
    limits = table.inputs[:, 0].numpy()
    third = np.digitize(limits, np.quantile(limits, [1 / 3, 2 / 3]))
    late, rng, found = table.targets.numpy() == 1, np.random.default_rng(seed), {}
    for number, name in enumerate(BANKS):
        paid, not_paid = np.flatnonzero((third == number) & ~late), np.flatnonzero((third == number) & late)
        few = rng.choice(not_paid, round(len(paid) * share / (1 - share)), replace=False)
        rows = torch.from_numpy(rng.permutation(np.concatenate([paid, few])))
        found[name] = (table.inputs[rows], table.targets[rows])
    return from_clients(found, test=test, classes=2, seed=seed, name="three banks")


def together(data: atoll.FederatedData) -> atoll.FederatedData:
    """The same rows in one place, which no law would allow."""
    parts = [data.samples(bank) for bank in range(len(data))]
    rows = tuple(torch.cat(each) for each in zip(*parts, strict=True))
    return from_clients({"everybody": rows}, test=tuple(data.test_set), classes=2, name="pooled")


def model() -> nn.Module:
    return atoll.models.mlp(33, 32, 2)


def learn(settings: Mapping[str, Any], rounds: int, seed: int) -> tuple[Figures, dict[str, dict[str, Any]]]:
    """Train in every way on one division; figures, and results of the runs."""
    given = {key: value for key, value in settings.items() if key not in ("defaulters", "test")}
    secure, private = given.pop("secure"), given.pop("private")
    data = banks(settings["defaulters"], settings["test"], seed)
    common = {**given, "rounds": rounds, "seed": seed, "eval_every": 0, "metrics": ",".join(MEASURES)}
    ways = {
        "each alone": (data, "local", {}),
        "federated": (data, "fedavg", {}),
        "secure sum": (data, "fedavg", secure),
        "and private": (data, "fedavg", private),
        "pooled": (together(data), "fedavg", {}),
    }
    figures, results = {}, {}
    for name, (where, method, more) in ways.items():
        run = atoll.Federation(model, where, method, **{**common, **more}).fit(progress=False)
        # Whoever trained it, a model is judged at each bank.
        judged = (
            run.evaluation if name == "each alone" else atoll.Federation(run.model, data, **common).evaluate()
        )
        each = judged.each["personal" if name == "each alone" else "clients"]
        figures[name] = np.array(
            [[each[measure][bank] for measure in MEASURES] for bank in range(len(BANKS))]
        )
        results[name] = run.to_dict()
    return figures, results


def told(every: list[Figures], results: Mapping[str, Mapping[str, Any]]) -> str:
    """The table: means over divisions, of each bank and of all."""
    seeds = len(every)
    lines = [
        f"{'':12}" + "".join(f"{name:>16}" for name in (*BANKS, "mean of banks")) + f"{'sent':>10}  epsilon"
    ]
    for name in every[0]:
        stacked = np.stack([figures[name] for figures in every])  # [seeds, banks, measures]
        mean, result = stacked.mean(0), results[name]
        cells = [*mean, mean.mean(0)]
        sent = (result["bytes_up"] + result["bytes_down"]) / 1e6
        epsilon = result.get("epsilon")
        lines.append(
            f"{name:12}" + "".join(f"{auc:8.3f} {recall:6.1%} " for auc, recall in cells)
            + ("      rows" if name == "pooled" else f"{sent:7.2f} MB") + ("" if epsilon is None else f"{epsilon:9.2f}")
        )  # fmt: skip
    return "\n".join([f"AUC and recall at 1 % false alarms, means over {seeds} divisions", *lines])
