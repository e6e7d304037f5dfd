"""Every method in the setting of W1: seconds a round and bytes of a client, relative to federated averaging.

    python benchmarks/methods.py [--rounds 10] [--only fedavg,scaffold] [--write]

100 clients with 600 images each, a cohort of 10, one local epoch in batches of 10, the 2NN. What else a method
asks for is given: 60 validation images a client, 500 public images, for FedBN a 2NN with BatchNorm (and FedAvg with
that network to be compared with). Turns alternate: FedAvg before and after each method, and the ratio is to the mean
of the two. Seconds are those of the fastest round, as other load only adds to them, the first two left out; where a
method asks something of new clients, the first thirty. `--write` stores the table in benchmarks/results/methods.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from workloads import SEED, W1, WARM_UP, arrays

import atoll
from atoll.contract import Method
from atoll.methods import METHODS

PASSES = {"fedrep": {"head_epochs": 1}, "pfedme": {"inner_steps": 5}}
"""Settings that are not the defaults: one pass over the head and one over the body for FedRep."""


ACQUAINTED = 30
"""Rounds before the timed ones for methods that ask something of new clients, so that few are still new."""


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


def measure(
    name: str, data: atoll.FederatedData, rounds: int, engine: str, bn: bool
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
    try:
        played = [federation.round() for _ in range(before + rounds)][before:]
    finally:
        federation.engine.close()
    last = played[-1]
    seconds = min(each.seconds for each in played)
    return seconds, last.bytes_up / W1.cohort, last.bytes_down / W1.cohort


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--only", default="")
    parser.add_argument("--engine", default="auto")
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
    lines = [
        "| method | s a round | FedAvg's | ratio | up | down |",
        "|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    before: dict[bool, float] = {}
    for name in [each for each in given.only.split(",") if each] or METHODS:
        bn = name == "fedbn"
        if bn not in before:
            before[bn] = measure("fedavg", data, given.rounds, given.engine, bn)[0]
        seconds, up, down = measure(name, data, given.rounds, given.engine, bn)
        after = measure("fedavg", data, given.rounds, given.engine, bn)[0]
        plain, before[bn] = (before[bn] + after) / 2, after
        lines.append(
            f"| {name} | {seconds:.4f} | {plain:.4f} | {seconds / plain:.2f} | {up / model:.3g} | {down / model:.3g} |"
        )
        print(lines[-1], flush=True)
    if given.write:
        place = Path(__file__).parent / "results" / "methods.md"
        place.write_text("\n".join(lines) + "\n")
        print(f"written to {place}", file=sys.stderr)


if __name__ == "__main__":
    main()
