"""Every method in the setting of W1: seconds a round and bytes of a client, relative to federated averaging.

    python benchmarks/methods.py [--rounds 10] [--only fedavg,scaffold] [--cpu] [--engine batched] [--write]

100 clients with 600 images each, a cohort of 10, one local epoch in batches of 10, the 2NN. What else a method
asks for is given: 60 validation images a client, 500 public images, for FedBN a 2NN with BatchNorm (and FedAvg with
that network to be compared with). Turns alternate: FedAvg before and after each method, and the ratio is to the mean
of the two. Seconds are those of the fastest round, as other load only adds to them, the first two left out; where a
method asks something of new clients, the first thirty. With `--cpu` they are seconds of processors, of this process and
its workers, which neighbours change less: OpenMP's threads wait awake, so set OMP_NUM_THREADS=1 for it. The last two
columns say what the method's own arithmetic asks for: the multiply-adds of matrix products and convolutions in its
second round, on clients and server, counted in the loop in units of FedAvg's; and what there is beyond FedAvg's round,
whatever it is written in. `--write` stores the table in benchmarks/results/methods.md; with `--only` it replaces the
rows of these methods.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import os
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from workloads import SEED, W1, WARM_UP, arrays

import atoll
from atoll.contract import Method
from atoll.methods import METHODS

PASSES = {"fedrep": {"head_epochs": 1}, "pfedme": {"inner_steps": 5}, "fedala": {"first_passes": 1}}
"""Settings that are not the defaults: one pass over the head and one over the body for FedRep, and one for FedALA's
mixture in every round, for which a client makes ten in its second, once."""


ACQUAINTED = 30
"""Rounds before the timed ones for methods that ask something of new clients, so that few are still new."""


OF_PARTS = ("crossmodal",)
"""Methods that are for samples of several parts: `parts.py`."""

ASKS = {
    "fedprox": "a pass over the parameters a step",
    "scaffold": "a pass over the parameters a step",
    "feddyn": "a pass over the parameters a step",
    "qfedavg": "the loss of the received model on all data",
    "moon": "features of two more models a step",
    "heterofl": "narrower models; masks over the parameters a step",
    "pfnm": "assignments on the server",
    "fedma": "one layer a round; assignments on the server",
    "fedora": "a pass over the parameters a step; 2 validation passes; all models mixed for each client",
    "pfedhn": "momentum, decay and clipping: 4 more passes over the parameters a step; on the server Adam on 100 times "
    "the parameters, 240 MB of them and their moments read and written anew",
    "pfedhn-pc": "as pfedhn",
    "ditto": "2 models trained; a pass over the parameters a step",
    "apfl": "2 models trained; their mixture made anew each step",
    "pfedme": "5 gradients and 6 passes over the parameters a step",
    "per-fedavg": "2 gradients a step, of half a batch each; the parameters between them made anew",
    "fedala": "a pass for the weights of the mixture, on four fifths of each batch; ten once a client, left out",
    "fedphp": "features of a second model a step",
    "fedrep": "an epoch on the head, one on the body",
    "fedproto": "features; class means after training",
    "fedamp": "a pass over the parameters a step; all models compared",
    "heurfedamp": "a pass over the parameters a step; all models compared",
    "ifca": "the loss of each cluster's model on all data",
    "cfl": "the cohort's updates compared",
    "fedfomo": "5 models judged on validation data",
    "fedmd": "an epoch on the public inputs; outputs on them",
    "feddf": "on the server 100 steps of Adam on batches of 128, and the cohort's outputs on the public inputs",
}
"""What a round asks for beyond FedAvg's, whatever it is written in."""


def two_nn() -> nn.Module:
    return atoll.models.mlp(784, 200, 200, 10)


def normalised() -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in ((784, 200), (200, 200)):
        layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(200, 10))


def settings(name: str) -> dict[str, object]:
    """One epoch in batches of 10 for everybody, as far as the method has such settings."""
    fields = {field.name for field in dataclasses.fields(METHODS[name])}  # type: ignore[arg-type]
    wanted = {"lr": 0.01, "batch_size": W1.batch, "epochs": W1.epochs, "steps": None, **PASSES.get(name, {})}
    return {key: value for key, value in wanted.items() if key in fields}


def processors() -> float:
    """Seconds of processors so far, of this process and of its workers, those at work in ticks of Linux."""
    parts = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    ticks = 0
    for worker in multiprocessing.active_children():
        fields = Path(f"/proc/{worker.pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return sum(part.ru_utime + part.ru_stime for part in parts) + ticks / os.sysconf("SC_CLK_TCK")


def measure(
    name: str, data: atoll.FederatedData, rounds: int, engine: str, bn: bool, cpu: bool
) -> tuple[float, float, float]:
    """Seconds of the fastest round, and bytes up and down of a client in the last round."""
    torch.manual_seed(SEED)
    federation = atoll.Federation(
        normalised if bn else two_nn, data, name, rounds=ACQUAINTED + rounds, cohort=W1.cohort, engine=engine,
        eval_every=0,
        **settings(name),
    )  # fmt: skip
    asks = type(federation.method).enrol is not Method.enrol
    before = ACQUAINTED if asks else WARM_UP
    clock = processors if cpu else time.perf_counter
    spent = []
    try:
        for _ in range(before):
            federation.round()
        for _ in range(rounds):
            since = clock()
            last = federation.round()
            spent.append(clock() - since)
    finally:
        federation.engine.close()
    return min(spent), last.bytes_up / W1.cohort, last.bytes_down / W1.cohort


def products(name: str, data: atoll.FederatedData, bn: bool) -> float:
    """Multiply-adds of the second round."""
    torch.manual_seed(SEED)
    federation = atoll.Federation(
        normalised if bn else two_nn, data, name, rounds=2, cohort=W1.cohort, engine="loop", eval_every=0,
        **settings(name),
    )  # fmt: skip
    federation.round()
    with FlopCounterMode(display=False) as counter:
        federation.round()
    return counter.get_total_flops() / 2


def merged(place: Path, lines: list[str]) -> list[str]:
    """The stored table with these rows in the place of those of the same methods. ValueError where columns differ."""
    stored = place.read_text().splitlines()
    if stored[0] != lines[0]:
        raise ValueError(f"{place} has other columns: write the whole table first")
    new = {line.split(" | ")[0]: line for line in lines[2:]}
    kept = [new.pop(line.split(" | ")[0], line) for line in stored]
    return kept + list(new.values())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--only", default="")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--cpu", action="store_true", help="seconds of processors, not of the clock")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    source = arrays(W1)
    clients = {}
    for k, (x, y) in enumerate(zip(source.x, source.y, strict=True)):
        more = slice(60 * k, 60 * k + 60)
        clients[f"{k:03d}"] = (
            np.concatenate([x, source.x_test[more]]),
            np.concatenate([y, source.y_test[more]]),
        )
    data = atoll.data.from_clients(clients, test=None, validation=60)
    data = data.publish(torch.from_numpy(source.x_test[6000:6500]))
    model = 4 * W1.parameters
    seconds_of = "CPU s a round" if given.cpu else "s a round"
    head = f"| method | {seconds_of} | FedAvg's | ratio | up | down | multiply-adds | asks for |"
    lines = [head, "|---|---|---|---|---|---|---|---|"]
    print("\n".join(lines), flush=True)
    before: dict[bool, float] = {}
    unit: dict[bool, float] = {}
    for name in [each for each in given.only.split(",") if each] or [
        each for each in METHODS if each not in OF_PARTS
    ]:
        bn = name == "fedbn"
        if bn not in before:
            before[bn] = measure("fedavg", data, given.rounds, given.engine, bn, given.cpu)[0]
            unit[bn] = products("fedavg", data, bn)
        seconds, up, down = measure(name, data, given.rounds, given.engine, bn, given.cpu)
        after = measure("fedavg", data, given.rounds, given.engine, bn, given.cpu)[0]
        plain, before[bn] = (before[bn] + after) / 2, after
        lines.append(
            f"| {name} | {seconds:.4f} | {plain:.4f} | {seconds / plain:.2f} | {up / model:.3g} | {down / model:.3g} "
            f"| {products(name, data, bn) / unit[bn]:.2f} | {ASKS.get(name, '')} |"
        )
        print(lines[-1], flush=True)
    if given.write:
        place = Path(__file__).parent / "results" / "methods.md"
        place.write_text("\n".join(merged(place, lines) if given.only else lines) + "\n")
        print(f"written to {place}", file=sys.stderr)


if __name__ == "__main__":
    main()
