"""Do silos that meet every fifty steps train as good a language model as one that trains on all their text?

    python benchmarks/pretrain.py [--steps 4000] [--model gpt:2,32,2] [--write]

A small transformer on tiny Shakespeare, four silos. Synchronous training takes every step on a batch of all silos' text
(`atoll train`, DDP; each silo would send a gradient a step). DiLoCo is a federation: `fedopt` with Nesterov momentum at
the server, and AdamW at the silos, whose moments stay there; each sends its model every fifty steps. Both read as many
tokens in as many steps, by the same cosine, and are judged on the same unseen windows. Silos have speaking roles of
their own, or samples by chance; in two more runs the fourth silo is away for a fifth of the rounds, and comes back.
`--write` stores benchmarks/results/pretrain.md.
"""

from __future__ import annotations

import argparse
import math
import resource
from pathlib import Path
from typing import Any

import torch

import atoll
import atoll.clock
from atoll.data import Dataset, FederatedData, Samples

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
    parts = {
        split: [silos.samples(k, split) for k in range(len(silos))] for split in ("train", "test")
    }
    joined = {
        split: Samples(torch.cat([p.inputs for p in own]), torch.cat([p.targets for p in own]))  # type: ignore[union-attr, misc]
        for split, own in parts.items()
    }
    return Dataset("all silos", joined["train"], joined["test"], classes=silos.classes)


def synchronous(silos: FederatedData, given: argparse.Namespace) -> tuple[float, float]:
    """(loss, bytes that a silo would send)."""
    run = atoll.train(
        given.model, union(silos), "ddp", workers=1, steps=given.steps, batch=SILOS * given.batch,
        optimizer=f"adamw:{DECAY}", lr=given.lr, clip=1.0, threads=1, schedule=f"cosine:{given.steps}",
        every=given.steps // 10, checkpoint=0, test=None,
    )  # fmt: skip
    assert run.loss is not None
    return run.loss, 4.0 * given.steps * sum(p.numel() for p in run.model.parameters())


def diloco(silos: FederatedData, given: argparse.Namespace, away: bool) -> tuple[float, float, int]:
    """(loss, bytes that a silo sends, tokens that were read)."""
    rounds = given.steps // EVERY
    seconds = 10.0  # of a round, on the virtual clock
    device = {"speed": EVERY * given.batch / seconds, "latency": 0.0, "download": 1e15, "upload": 1e15}
    named: dict[str, dict[str, Any]] = {name: dict(device) for name in silos.names}
    if away:  # quicker than the others, so that it is done when it leaves
        first, last = (rounds * share // 5 for share in (2, 3))
        named[silos.names[-1]] |= {
            "speed": 2 * device["speed"],
            "active": [0.0, (last - 0.1) * seconds],
            "inactive": [(first - 0.1) * seconds, 1e9],
        }
    from atoll.assembly import networks

    run = atoll.Federation(
        networks(given.model, silos)[0], silos, "fedopt", rounds=rounds, lr=given.lr, batch_size=given.batch,
        schedule=f"cosine:{rounds}", engine=given.engine, workers=1, eval_every=max(1, rounds // 10),
        devices=atoll.clock.devices(named, clients=SILOS, names=silos.names), **DILOCO,
    ).fit(progress=False)  # fmt: skip
    there = [SILOS - 1 in each.cohort for each in run.rounds]
    assert all(there) != away
    loss, told = run.history("loss")[-1][1], run.to_dict()
    return loss, told["bytes_up"] / (len(there) * SILOS - there.count(False)) * rounds, told["tokens"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=8, help="windows of a silo in a step")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--model", default="gpt:2,32,2")
    parser.add_argument("--engine", default="loop")
    parser.add_argument("--only", choices=("roles", "chance"))
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "| training | silos | perplexity | beside synchronous | beside all there | a silo sends | times less | CPU s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)

    def tell(name: str, kind: str, loss: float, sent: float, base: float, sent_by: float, whole: float | None) -> None:
        now = resource.getrusage(resource.RUSAGE_SELF)
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = now.ru_utime + now.ru_stime + children.ru_utime + children.ru_stime
        beside = "" if whole is None else f"{100 * math.expm1(loss - whole):+.2f} %"
        lines.append(
            f"| {name} | {kind} | {math.exp(loss):.4f} | {100 * math.expm1(loss - base):+.2f} % | {beside} "
            f"| {sent / 1e6:,.1f} MB | {sent_by / sent:.1f} | {seconds - spent[-1]:.0f} |"
        )
        spent.append(seconds)
        print(lines[-1], flush=True)

    spent, tokens = [0.0], 0
    for kind in ("roles", "chance"):
        if given.only not in (None, kind):
            continue
        silos = divided(kind == "roles")
        told = "by role" if kind == "roles" else "by chance"
        base, most = synchronous(silos, given)
        tell("synchronous", told, base, most, base, most, None)
        loss, sent, tokens = diloco(silos, given, away=False)
        tell("DiLoCo, H = 50", told, loss, sent, base, most, None)
        gone, sent, _ = diloco(silos, given, away=True)
        tell("DiLoCo, a silo away for a fifth", told, gone, sent, base, most, loss)
    if given.write:
        about = (
            f"{given.model} on tiny Shakespeare, {SILOS} silos, {given.steps} steps of {SILOS} x {given.batch} windows of"
            f" 80 symbols ({tokens:,} tokens), lr {given.lr:g}; one thread of a shared CPU.\n\n"
        )
        Path(__file__).with_name("results").joinpath("pretrain.md").write_text(about + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
