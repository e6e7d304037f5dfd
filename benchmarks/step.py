"""A local step of a transformer beside a hand-written loop with the same batches: one client, one process, in turn.

    python benchmarks/step.py [--model gpt:4,128] [--batch 16] [--steps 8] [--pairs 7]

Each pair takes the same steps of plain SGD from the same weights on the same batches, once in PyTorch as anybody would
write it, once by each of Atoll's engines. Seconds are those of this process on its processors, since others may share
the machine; the ratio is the median over pairs. At the end both have the same weights, but for rounding.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import atoll
from atoll.contract import Job
from atoll.engines.client import Client
from atoll.engines.reading import the_order
from atoll.engines.sequential import Sequential
from atoll.federation import Federation
from atoll.machine import threads

LR = 0.1


def by_hand(module: nn.Module, inputs: Tensor, targets: Tensor, batches: list[Any]) -> nn.Module:
    """The loop that anybody would write."""
    module = copy.deepcopy(module).train()
    optimizer = torch.optim.SGD(module.parameters(), lr=LR)
    for rows in batches:
        optimizer.zero_grad()
        logits = module(inputs[rows])
        F.cross_entropy(logits.flatten(0, 1), targets[rows].flatten()).backward()
        optimizer.step()
    return module


def clocked(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds on this process's processors, and what the function gives."""
    begun = time.process_time()
    found = function()
    return time.process_time() - begun, found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="gpt:4,128")
    parser.add_argument("--window", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=7)
    given = parser.parse_args()
    torch.manual_seed(0)
    module = atoll.models.build(given.model, (given.window,), 256)
    text = torch.randint(0, 256, (given.batch * given.steps, given.window + 1))
    inputs, targets = text[:, :-1].contiguous(), text[:, 1:].contiguous()
    data = atoll.data.from_clients({"a": (inputs, targets)}, test=None, classes=256)
    fed = Federation(
        module, data, "fedavg", lr=LR, batch_size=given.batch, steps=given.steps, engine="loop", device="cpu",
        eval_every=0,
    )  # fmt: skip
    method, task, device = fed.method, fed.simulation.population.tasks[0], torch.device("cpu")
    job = Job(method, method.broadcast(fed.state, [0]), [0], 1, 0, method.expects(fed.state))
    order, program = job.order(0), job.program
    reading = the_order(order, program.plan(), task, data)
    batches = [
        torch.from_numpy(rows[real > 0]) for rows, real in zip(reading.index, reading.mask, strict=True)
    ]
    engines = {"loop": Client(task, data, device), "captured": Sequential(task, data, device)}
    ways: dict[str, Callable[[], Any]] = {
        "by hand": lambda: by_hand(module, inputs, targets, batches),
        **{
            name: lambda client=client: client.answer(order, program, None)[0]
            for name, client in engines.items()
        },
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with threads(1):
        last = {name: way() for name, way in ways.items()}  # warm
        for _ in range(given.pairs):
            for name, way in ways.items():
                spent, last[name] = clocked(way)
                seconds[name].append(spent)
    whole = {name: p.detach() for name, p in last["by hand"].named_parameters()}
    began = dict(module.named_parameters())
    apart = {
        way: max(
            float((began[name].detach() + change - whole[name]).abs().max())
            for name, change in last[way].reply.values.update.items()
        )
        for way in engines
    }
    found = {
        "model": given.model, "batch": given.batch, "window": given.window, "steps": given.steps,
        "seconds_a_step": {name: statistics.median(each) / given.steps for name, each in seconds.items()},
        "ratio": {
            way: statistics.median(np.array(seconds[way]) / np.array(seconds["by hand"])) for way in engines
        },
        "apart": apart,
    }  # fmt: skip
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
