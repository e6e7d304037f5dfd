"""`atoll plan`: what training a model would take, strategy by strategy."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console

from atoll.cli.given import code
from atoll.distributed.planning import Demand, Plan, Setup, demanded, plans, quantity
from atoll.distributed.settings import Training
from atoll.distributed.strategies import parse
from atoll.distributed.training import prepare
from atoll.errors import ConfigError
from atoll.optimizers import optimizer
from atoll.words import bytes_text, duration_text

__all__ = ["Wish", "command"]


@dataclass(frozen=True)
class Wish:
    """What the command line asks for."""

    model: str
    workers: int
    memory: str
    bandwidth: str
    batch: int = 64
    optimizer: str = "sgd"
    data: str | None = None
    shape: str | None = None
    classes: int = 10
    latency: float = 0.1
    flops: str | None = None
    json: bool = False
    code: list[str] = field(default_factory=list)


def command(wish: Wish) -> None:
    """Say what each strategy would take.  Raises ConfigError."""
    memory = quantity(wish.memory, "memory", "B")
    setup = Setup(wish.workers, wish.batch, quantity(wish.bandwidth, "bandwidth", "B"), wish.latency / 1000)
    flops = None if wish.flops is None else quantity(wish.flops, "flops", "")
    code(wish.code)
    job = _job(wish)
    rows = -(-wish.batch // wish.workers)
    demand = demanded(job.task, job.data, optimizer(wish.optimizer), rows, flops)
    found = plans(demand, setup)
    fitting = [plan for plan in found if plan.memory <= memory]
    quickest = _quickest(fitting)
    exact = _quickest([plan for plan in fitting if not parse(plan.strategy).local])
    if wish.json:
        print(
            json.dumps(
                {
                    "model": wish.model,
                    "parameters": demand.numbers,
                    "bytes": demand.size,
                    "workers": wish.workers,
                    "batch": wish.batch,
                    "memory": memory,
                    "bandwidth": setup.bandwidth,
                    "measured": flops is None,
                    "plans": [plan.to_dict(memory) for plan in found],
                    "quickest": quickest,
                    "quickest_exact": exact,
                }
            )
        )
        return
    _show(wish, demand, found, memory)
    if quickest is None:
        print("none of them fits")
        return
    print(f"quickest of those that fit: {quickest}")
    if exact not in (quickest, None):
        print(f"of those that compute what one worker would: {exact}")


def _quickest(found: list[Plan]) -> str | None:
    """The strategy whose steps take the least time."""
    plan = min(found, key=lambda plan: plan.seconds, default=None)
    return None if plan is None else plan.strategy


def _job(wish: Wish) -> Any:
    """The model, with data or with samples made up for it."""
    given: dict[str, Any] = {
        "model": wish.model,
        "workers": wish.workers,
        "batch": wish.batch,
        "optimizer": wish.optimizer,
    }
    if (wish.data is None) == (wish.shape is None):
        raise ConfigError(
            "a model is planned for data, or for samples of a shape", hint="--data digits, or --shape 3,32,32"
        )
    if wish.data is not None:
        return prepare(Training.read(data=wish.data, **given))
    try:
        shape = [int(part) for part in str(wish.shape).split(",")]
    except ValueError:
        shape = []
    if not shape or min(shape) < 1:
        raise ConfigError(f"shape = {wish.shape!r} is not whole numbers above 0", hint="--shape 3,32,32")
    count = max(wish.batch, wish.classes, 2)
    inputs = torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(count) % wish.classes if wish.classes else torch.zeros(count)
    return prepare(Training.read(test=None, **given), None, (inputs, targets))


def _show(wish: Wish, demand: Demand, found: list[Plan], memory: float) -> None:
    console = Console(highlight=False)
    speed = "measured here, one thread" if wish.flops is None else f"at {wish.flops} operations a second"
    console.print(
        f"{wish.model}: {demand.numbers:,} parameters, {bytes_text(demand.size)};"
        f" a batch of {wish.batch} by {wish.workers} workers of {wish.memory}, {wish.bandwidth} between them;"
        f" compute {speed}",
        soft_wrap=True,
    )
    names = ("parameters", "gradients", "optimizer", "activations", "more")
    rows = [["strategy", *names, "memory", "sent a step", "compute", "sending", "a step"]]
    for plan in found:
        sizes = [getattr(plan, name) for name in names]
        times = [duration_text(each) for each in (plan.compute, plan.communication, plan.seconds)]
        row = [
            plan.strategy,
            *(bytes_text(math.ceil(each)) for each in (*sizes, plan.memory, plan.bytes)),
            *times,
        ]
        rows.append(row + ["too large"] * (plan.memory > memory))
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    for row in rows:
        first, *others = (text.rjust(width) for text, width in zip(row, widths, strict=False))
        console.print("  ".join([row[0].ljust(len(first)), *others, *row[len(widths) :]]), soft_wrap=True)
    for plan in found:
        if plan.bubble:
            console.print(f"{plan.strategy} waits {plan.bubble:.0%} of its time")
