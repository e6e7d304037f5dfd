"""What happens on the way to the server, time, and `atoll train`: do they give on this device what they give on a CPU?

`atoll train` has one worker here, so that its groups are NCCL's of one process: what is asked is whether every strategy
runs there and computes the same, and what it costs beside steps written by hand.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from gpu_agree import NETWORKS, agree, apart, exact_products
from gpu_runner import Case, Json, Part, Setting
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import atoll

ON_THE_WAY: dict[str, Json] = {
    "clip": {"channel": "clip:0.5"},
    "clip and noise": {"channel": "clip:0.5 | noise:0.1,seed=7"},
    "secagg": {"channel": "clip:0.5 | secagg"},
    "bf16": {"channel": "bf16"},
    "int8": {"channel": "int8"},
    "topk, feedback": {"channel": "topk:0.1 + feedback"},
    "drive, feedback": {"channel": "drive + feedback"},
    "powersgd, feedback": {"channel": "powersgd:2 + feedback"},
    "dp_sgd": {"dp_sgd": "1.0,1.0"},
    "deadline": {"devices": "lognormal:1", "deadline": 3.0},
    "buffered": {"devices": "lognormal:1", "pace": "buffered:2"},
}
"""Settings of FedAvg on the MLP."""

STRATEGIES = (
    "ddp", "ring", "compressed:int8", "zero1", "fsdp", "local:4", "diloco:4",
)  # fmt: skip

TOGETHER = (
    "ddp",
    "ring",
    "compressed:int8",
    "compressed:drive",
    "zero1",
    "local:4",
    "diloco:4",
    "diloco:8,codec=int4",
)


def samples(count: int, shape: tuple[int, ...]) -> atoll.data.Dataset:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((count, *shape)).astype(np.float32)
    return atoll.data.from_arrays(x, rng.integers(0, 10, count))


def small() -> nn.Module:
    return atoll.models.mlp(40, 32, 10)


def strategy(text: str, setting: Setting) -> Json:
    """Twenty steps of one worker: how far the device's model lies from the CPU's; resumed, it has the same bits."""
    data = samples(512, (40,))

    def train(device: str, **more: Any) -> nn.Module:
        given: Json = {
            "workers": 1,
            "steps": 20,
            "lr": 0.1,
            "optimizer": "sgd:0.9",
            "threads": 1,
            "test": None,
        }
        return atoll.train(small, data, text, device=device, **given | {"runs": None} | more).model

    device = str(setting.device)
    with exact_products(), tempfile.TemporaryDirectory() as place:
        start = train("cpu", lr=1e-30)
        wanted, found = train("cpu"), train(device)
        train(device, runs=place, steps=12, every=4)
        resumed = train(device, runs=place, every=4, resume="last")
    row: Json = {"from the CPU": apart(found, wanted, start), "resumed": apart(resumed, found, start)}
    # A stochastic codec draws what it rounds where the gradients are.
    allowed = 1e-2 if text.startswith("compressed") else 1e-5
    wrong = [f"{name} lies {far:.2e} apart" for name, far in row.items() if not far <= allowed]
    return {**row, "failed": "\n".join(wrong)} if wrong else row


@cache
def loss_of_two(text: str, device: str) -> float:
    """After forty steps of two workers, as a command starts them."""
    command = [
        sys.executable, "-m", "atoll", "train", "--json", "--workers", "2", "--set", f"strategy={text}",
        "--set", "data=digits", "--set", "model=mlp:32,32", "--set", "steps=40", "--set", f"device={device}",
        "--set", "runs=none", "--set", "threads=1", "--set", "lr=0.5",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise RuntimeError(f"{device}: exit status {done.returncode}: {done.stderr[-1500:]}")
    return float(json.loads(done.stdout.splitlines()[-1])["loss"])


def together(text: str, setting: Setting) -> Json:
    """The loss on the device, which two workers share, and on the CPU: of DDP where the strategy computes the same."""
    name = text.partition(":")[0]
    cpu = loss_of_two(text if name in ("compressed", "local", "diloco") else "ddp", "cpu")
    found = loss_of_two(text, "cuda:0" if setting.cuda else "cpu")
    # A stochastic codec draws what it rounds where the gradients are.
    far, allowed = abs(found / cpu - 1), 1e-2 if name == "compressed" else 1e-5
    row: Json = {"cpu": cpu, "device": found, "apart": far}
    return row if far <= allowed else {**row, "failed": f"{far:.2e} apart, allowed are {allowed:.0e}"}


def by_hand(
    make: Any, data: atoll.data.Dataset, batch: int, text: str, precision: str, setting: Setting
) -> float:
    """Seconds of a step of what everybody writes: torch's own wrapper, with the samples on the device."""
    dist.init_process_group("nccl" if setting.cuda else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    net = make().to(setting.device)
    if text == "ddp":
        net = DistributedDataParallel(net)
    else:
        for part in net.modules():
            if part is not net and list(part.parameters(recurse=False)):
                fully_shard(part)
        fully_shard(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    x, y = (value.to(setting.device) for value in (data.train.inputs, data.train.targets))

    def steps() -> None:
        for at in range(20):
            rows = torch.arange(at * batch, (at + 1) * batch, device=setting.device) % len(x)
            optimizer.zero_grad()
            with torch.autocast(setting.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                loss = F.cross_entropy(net(x[rows]), y[rows])
            loss.backward()
            optimizer.step()

    try:
        return setting.median(steps, 5) / 20
    finally:
        dist.destroy_process_group()


def speed(name: str, text: str, precision: str, setting: Setting) -> Json:
    """Steps a second of `atoll train` beside the loop by hand with torch's wrapper."""
    batch, shape = (16, (1, 28, 28)) if setting.quick else (256, (1, 28, 28))
    data = samples(4 * batch, shape)

    def make() -> nn.Module:
        return atoll.models.build(name, shape, 10)

    plain = by_hand(make, data, batch, text, precision, setting)
    run = atoll.train(
        make, data, text, workers=1, steps=20 if setting.quick else 400, batch=batch, lr=0.05, test=None,
        precision=precision, device=str(setting.device), runs=None, every=10 if setting.quick else 200,
    )  # fmt: skip
    ours = 1 / run.figures["steps_per_second"]
    return {"by hand, ms": 1e3 * plain, "ours, ms": 1e3 * ours, "ratio": ours / plain, "loss": run.loss}


def parts(setting: Setting) -> list[Part]:
    """Channels and time first, then `atoll train`."""
    ways = [(name, ON_THE_WAY[name]) for name in (["int8"] if setting.quick else ON_THE_WAY)]
    texts = ["fsdp"] if setting.quick else STRATEGIES
    speeds = [
        ("cnn", "ddp", "float32"), ("cnn", "fsdp", "float32"), ("cnn", "ddp", "bfloat16"),
        ("mlp:200,200", "ddp", "float32"),
    ]  # fmt: skip
    return [
        Part(
            "channels",
            "Channels, noise and time, FedAvg on the MLP, against the loop on the CPU",
            [
                Case(name, partial(agree, NETWORKS["MLP"], "FedAvg", **more), expect=4.0)
                for name, more in ways
            ],
        ),
        Part(
            "training",
            "`atoll train`, one worker, 20 steps: ||w - w'|| / ||w' - w_0||",
            [Case(text, partial(strategy, text), expect=5.0) for text in texts],
        ),
        Part(
            "together",
            "`atoll train`, two workers that share the device: the loss after 40 steps",
            [
                Case(text, partial(together, text), expect=12.0)
                for text in (texts if setting.quick else TOGETHER)
            ],
        ),
        Part(
            "steps",
            "`atoll train`, one worker, ms a step of 256 samples, beside torch's wrapper in a loop by hand",
            [
                Case(f"{name}, {text}, {precision}", partial(speed, name, text, precision), expect=8.0)
                for name, text, precision in (speeds[:1] if setting.quick else speeds)
            ],
        ),
    ]
