"""Do silos that meet every fifty steps train as good a language model as one that trains on all their text?

    python benchmarks/pretrain.py [--before 1500] [--steps 1000] [--model gpt:1,32,2] [--write]

A small transformer on tiny Shakespeare, four silos. Both begin with a model that has taken so many steps before, as in
the paper. Synchronous training takes every step on a batch of all silos' text (`atoll train`, DDP; each silo would send
a gradient a step). DiLoCo is a federation: `fedopt` with Nesterov momentum at the server, and AdamW at the silos, whose
moments stay there; each sends its model every fifty steps. Both read as many tokens in as many steps, by the same
cosine, try the same step sizes, and are judged on the same unseen windows. Silos have speaking roles of their own, or
samples by chance; in a further run the fourth silo is away for a fifth of the rounds, and comes back.
`--write` stores benchmarks/results/pretrain.md.
"""

from __future__ import annotations

import argparse
import math
import resource
from pathlib import Path
from typing import Any

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


def trained(model: Any, silos: FederatedData, steps: int, schedule: str, lr: float, batch: int) -> Any:
    """Synchronous training on the text of all silos."""
    return atoll.train(
        model, union(silos), "ddp", workers=1, steps=steps, batch=SILOS * batch, optimizer=f"adamw:{DECAY}",
        lr=lr, clip=1.0, threads=1, schedule=schedule, every=steps, checkpoint=0, test=None,
    )  # fmt: skip


def diloco(model: nn.Module, silos: FederatedData, given: argparse.Namespace, lr: float, away: bool) -> Run:
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
        engine=given.engine, workers=1, eval_every=0,
        devices=atoll.clock.devices(named, clients=SILOS, names=silos.names), **DILOCO,
    ).fit(progress=False)  # fmt: skip
    assert [len(each.cohort) for each in run.rounds].count(SILOS - 1) == (last - first if away else 0)
    return run


def used() -> float:
    """Seconds of the processor so far, of this process and those that it has waited for."""
    found = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in found)


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
    parser.add_argument("--only", choices=("by role", "by chance"))
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    head = "| training | silos | lr | perplexity | beside the best synchronous | a silo sends | times less | CPU s |"
    lines = [head, "|---|---|---|---|---|---|---|---|"]
    print("\n".join(lines), flush=True)
    tokens = 0
    for kind in ("by role", "by chance"):
        if given.only not in (None, kind):
            continue
        silos = divided(kind == "by role")
        (make,) = networks(given.model, silos)
        then = used()

        def tell(
            name: str, kind: str, lr: float, loss: float, sent: float, base: float | None, most: float
        ) -> None:
            nonlocal then
            beside = "" if base is None else f"{100 * math.expm1(loss - base):+.2f} %"
            less = f"{most / sent:.1f}" if sent else ""
            lines.append(
                f"| {name} | {kind} | {lr:g} | {math.exp(loss):.4f} | {beside} | {sent / 1e6:,.2f} MB | {less} "
                f"| {used() - then:.0f} |"
            )
            print(lines[-1], flush=True)
            then = used()

        begun = trained(make, silos, given.before, "constant", given.lr[0], given.batch)
        tell("before", kind, given.lr[0], begun.loss, 0.0, None, 0.0)
        most = 4.0 * given.steps * sum(p.numel() for p in begun.model.parameters())
        whole = []
        for lr in given.lr:
            run = trained(begun.model, silos, given.steps, f"cosine:{given.steps}", lr, given.batch)
            whole.append(run.loss)
            tell("synchronous", kind, lr, run.loss, most, None, most)
        found: dict[float, float] = {}
        for lr in (*given.lr, None):
            away = lr is None  # with the step size that was the best when all were there
            rate = min(found, key=lambda each: found[each]) if lr is None else lr
            run = diloco(begun.model, silos, given, rate, away)
            loss, sent = run.history("loss")[-1][1], run.to_dict()["bytes_up"] / SILOS
            name = "DiLoCo, a silo away for a fifth" if away else "DiLoCo, H = 50"
            tell(name, kind, rate, loss, sent, min(whole), most)
            tokens = tokens or run.tokens or 0
            if away:
                lines.append(f"\nAway beside all there: {100 * math.expm1(loss - found[rate]):+.2f} %.")
                print(lines[-1], flush=True)
            else:
                found[rate] = loss
    if given.write:
        about = (
            f"{given.model} on tiny Shakespeare, {SILOS} silos, {given.before} steps before and {given.steps} steps of"
            f" {SILOS} x {given.batch} windows of 80 symbols ({tokens:,} tokens); one thread.\n\n"
        )
        Path(__file__).with_name("results").joinpath("pretrain.md").write_text(
            about + "\n".join(lines) + "\n"
        )


if __name__ == "__main__":
    main()
