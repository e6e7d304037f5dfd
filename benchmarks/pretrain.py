"""Do silos that meet every fifty steps train as good a language model as one that trains on all their text?

    python benchmarks/pretrain.py [--before 1500] [--steps 1000] [--model gpt:1,32,2] [--seeds 1] [--write NAME]

A small transformer on tiny Shakespeare, four silos. Both begin with a model that has taken so many steps before, as in
the paper. Synchronous training takes every step on a batch of all silos' text (`atoll train`, DDP; each silo would send
a gradient a step). DiLoCo is a federation: `fedopt` with Nesterov momentum at the server, and AdamW at the silos, whose
moments stay there; each sends its model every fifty steps. Both read as many tokens in as many steps, by the same
cosine, try the same step sizes, and are judged on the same unseen windows; of several seeds the first tries all step
sizes, and the others take what was the best of each there. Silos have speaking roles of their own, or samples by
chance; in a further run the fourth silo is away for a fifth of the rounds, and comes back.
`--write` stores benchmarks/results/NAME.md.
"""

from __future__ import annotations

import argparse
import math
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

import atoll
import atoll.clock
from atoll.data import Dataset, FederatedData, Samples
from atoll.networks import networks
from atoll.results import Run

SILOS, EVERY, DECAY = 4, 50, 0.1
DILOCO: dict[str, Any] = {
    "server_optimizer": "nesterov:0.9", "server_lr": 0.7, "keep_optimizer": True, "optimizer": "adamw",
    "weight_decay": DECAY, "clip": 1.0, "steps": EVERY,
}  # fmt: skip


def divided(by_role: bool) -> FederatedData:
    """Four silos, each with a tenth of its windows for the test."""
    data = atoll.data.load("shakespeare")
    if not by_role:
        return data.partition("iid", clients=SILOS, test=0.1)
    roles = len(set(data.columns["role"].tolist()))
    return data.partition(f"natural:group={-(-roles // SILOS)}", test=0.1)


def union(silos: FederatedData) -> Dataset:
    """What all silos have, in one place."""
    parts = {split: [silos.samples(k, split) for k in range(len(silos))] for split in ("train", "test")}
    joined = {
        split: Samples(torch.cat([p.inputs for p in own]), torch.cat([p.targets for p in own]))  # type: ignore[union-attr, misc]
        for split, own in parts.items()
    }
    return Dataset("all silos", joined["train"], joined["test"], classes=silos.classes)


def trained(
    model: Any, silos: FederatedData, steps: int, schedule: str, lr: float, batch: int, seed: int
) -> Any:
    """Synchronous training on the text of all silos."""
    return atoll.train(
        model, union(silos), "ddp", workers=1, steps=steps, batch=SILOS * batch, optimizer=f"adamw:{DECAY}",
        lr=lr, clip=1.0, threads=1, schedule=schedule, every=steps, checkpoint=0, test=None, seed=seed,
    )  # fmt: skip


def diloco(
    model: nn.Module, silos: FederatedData, given: argparse.Namespace, lr: float, away: bool, seed: int
) -> Run:
    """A federation of the silos, on the virtual clock; with `away` the last one is gone for a fifth of the rounds."""
    rounds = given.steps // EVERY
    seconds = 10.0  # of a round
    device = {"speed": EVERY * given.batch / seconds, "latency": 0.0, "download": 1e15, "upload": 1e15}
    named: dict[str, dict[str, Any]] = {name: dict(device) for name in silos.names}
    if away:  # quicker than the others, so that it is done when it leaves
        first, last = (rounds * share // 5 for share in (2, 3))
        named[silos.names[-1]] |= {
            "speed": 2 * device["speed"],
            "active": [0.0, (last - 0.1) * seconds],
            "inactive": [(first - 0.1) * seconds, 1e9],
        }
    run = atoll.Federation(
        model, silos, "fedopt", rounds=rounds, lr=lr, batch_size=given.batch, schedule=f"cosine:{rounds}",
        engine=given.engine, workers=1, eval_every=0, seed=seed,
        devices=atoll.clock.devices(named, clients=SILOS, names=silos.names), **DILOCO,
    ).fit(progress=False)  # fmt: skip
    assert [len(each.cohort) for each in run.rounds].count(SILOS - 1) == (last - first if away else 0)
    return run


def used() -> float:
    """Seconds of the processor so far, of this process and those that it has waited for."""
    found = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in found)


class Row(NamedTuple):
    """A training that is over."""

    training: str
    lr: float
    loss: float
    base: float | None
    """The loss of synchronous training with the step size that was the best."""
    sent: float
    """Bytes of a silo."""
    seconds: float
    """Of the processor."""


def one_seed(
    silos: FederatedData, given: argparse.Namespace, rates: dict[str, list[float]], seed: int
) -> tuple[list[Row], int, float]:
    """All trainings of a seed; the tokens of one, and the bytes of synchronous training."""
    (make,) = networks(given.model, silos)
    rows: list[Row] = []
    then = used()

    def tell(training: str, lr: float, loss: float, base: float | None = None, sent: float = 0.0) -> None:
        nonlocal then
        rows.append(Row(training, lr, loss, base, sent, used() - then))
        print(seed, *rows[-1], sep=" | ", flush=True)
        then = used()

    begun = trained(make, silos, given.before, "constant", given.lr[0], given.batch, seed)
    tell("before", given.lr[0], begun.loss)
    most = 4.0 * given.steps * sum(p.numel() for p in begun.model.parameters())
    whole: list[float] = []
    for lr in rates["synchronous"]:
        run = trained(begun.model, silos, given.steps, f"cosine:{given.steps}", lr, given.batch, seed)
        whole.append(run.loss)
        tell("synchronous", lr, run.loss, None, most)
    found: dict[float, float] = {}
    tokens = 0
    for lr in (*rates["DiLoCo"], None):
        away = lr is None  # with the step size that was the best when all were there
        rate = min(found, key=lambda each: found[each]) if lr is None else lr
        run = diloco(begun.model, silos, given, rate, away, seed)
        loss, sent = run.history("loss")[-1][1], run.to_dict()["bytes_up"] / SILOS
        tell("DiLoCo, a silo away for a fifth" if away else "DiLoCo", rate, loss, min(whole), sent)
        if not away:
            found[rate], tokens = loss, run.tokens or 0
    return rows, tokens, most


def spread(values: Sequence[float], form: str) -> str:
    """The mean, and the deviation where there are several."""
    around = f" ± {np.std(values, ddof=1):{form.lstrip('+')}}" if len(values) > 1 else ""
    return f"{np.mean(values):{form}}{around}"


def table(kind: str, seeds: Sequence[Sequence[Row]], most: float) -> list[str]:
    """Rows over seeds; those of a step size that only the first seed has tried are of that one."""
    lines = []
    for training, lr in dict.fromkeys((row.training, row.lr) for rows in seeds for row in rows):
        own = [row for rows in seeds for row in rows if (row.training, row.lr) == (training, lr)]
        beside = [100 * math.expm1(row.loss - row.base) for row in own if row.base is not None]
        less = f"{most / own[0].sent:.1f}" if own[0].sent else ""
        lines.append(
            f"| {training} | {kind} | {lr:g} | {len(own)} | {spread([math.exp(row.loss) for row in own], '.4f')} "
            f"| {spread(beside, '+.2f') + ' %' if beside else ''} | {own[0].sent / 1e6:,.2f} MB | {less} "
            f"| {np.mean([row.seconds for row in own]):.0f} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=int, default=1500, help="steps of the model that both begin with")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=8, help="windows of a silo in a step")
    parser.add_argument("--lr", type=float, nargs="+", default=[3e-3, 1e-2], help="step sizes that both try")
    parser.add_argument("--model", default="gpt:1,32,2")
    parser.add_argument("--engine", default="batched")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", choices=("by role", "by chance"))
    parser.add_argument("--write", metavar="NAME")
    given = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "| training | silos | lr | seeds | perplexity | beside synchronous | a silo sends | times less | CPU s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    after, tokens = [], 0
    for kind in ("by role", "by chance"):
        if given.only not in (None, kind):
            continue
        silos = divided(kind == "by role")
        rates = {"synchronous": given.lr, "DiLoCo": given.lr}
        seeds: list[list[Row]] = []
        for seed in range(given.seeds):
            rows, tokens, most = one_seed(silos, given, rates, seed)
            seeds.append(rows)
            rates = {
                name: [min((row for row in seeds[0] if row.training == name), key=lambda row: row.loss).lr]
                for name in rates
            }
        lines += table(kind, seeds, most)
        costs = [
            100 * math.expm1(rows[-1].loss - min(row.loss for row in rows if row.training == "DiLoCo"))
            for rows in seeds
        ]
        after.append(f"Silos {kind}, away beside all there: {spread(costs, '+.2f')} %.")
    print("\n".join([*lines, "", *after]))
    if given.write:
        about = (
            f"{given.model} on tiny Shakespeare, {SILOS} silos, {given.before} steps before and {given.steps} steps of"
            f" {SILOS} x {given.batch} windows of 80 symbols ({tokens:,} tokens), H = {EVERY}; one thread.\n"
        )
        Path(__file__).with_name("results").joinpath(f"{given.write}.md").write_text(
            "\n".join([about, *lines, "", *after, ""])
        )


if __name__ == "__main__":
    main()
