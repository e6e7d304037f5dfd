"""Samples a second of the 2NN on two workers: `ps:async` beside DDP, Hogwild and a parameter server on torch's RPC.

    python benchmarks/servers.py [--repeat 5] [--steps 600] [--json FILE]

In alternation, so that a busy machine is busy for all of them; what counts is the median of the ratios. The server on
RPC follows the pattern of torch's tutorial, made as quick as it gets without another transport: one process with the
model and plain SGD, which steps under a lock as gradients come, one flat tensor each way, one round trip a step.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import tempfile
import threading
import time
import warnings
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import atoll

BATCH, LR, SAMPLES = 64, 0.01, 10_000


def net() -> nn.Module:
    """The 2NN."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10))


def samples() -> tuple[Tensor, Tensor]:
    """As large as MNIST's, of noise."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(SAMPLES, 784, generator=generator), torch.randint(
        0, 10, (SAMPLES,), generator=generator
    )


# --- the server on RPC ------------------------------------------------------------------------------------------------


class Holder:
    """The model, at the server."""

    def __init__(self) -> None:
        self.params = nn.utils.parameters_to_vector(net().parameters()).detach()
        self.lock = threading.Lock()


_holder: Holder | None = None


def stepped(gradient: Tensor | None) -> Tensor:
    """At the server: one step, and the parameters."""
    global _holder
    _holder = _holder or Holder()
    with _holder.lock:
        if gradient is not None:
            _holder.params.sub_(gradient, alpha=LR)
        return _holder.params.clone()


def member(rank: int, place: str, steps: int, out: object) -> None:
    """Rank 0 is the server, the others are workers."""
    import torch.distributed.rpc as rpc

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    options = rpc.TensorPipeRpcBackendOptions(
        num_worker_threads=4, init_method=f"file://{place}", rpc_timeout=60
    )
    rpc.init_rpc(f"member{rank}", rank=rank, world_size=3, rpc_backend_options=options)
    if rank:
        module, (x, y) = net(), samples()
        params = list(module.parameters())
        flat = nn.utils.parameters_to_vector(params).detach()
        grads, at = torch.zeros_like(flat), 0
        for p in params:
            p.data, p.grad = flat[at : at + p.numel()].view_as(p), grads[at : at + p.numel()].view_as(p)
            at += p.numel()
        rng = np.random.default_rng(rank)
        flat.copy_(rpc.rpc_sync("member0", stepped, (None,)))
        began = time.perf_counter()
        for _ in range(steps):
            rows = rng.integers(0, SAMPLES, BATCH // 2)
            grads.zero_()
            cross_entropy(module(x[rows]), y[rows]).backward()
            flat.copy_(rpc.rpc_sync("member0", stepped, (grads,)))
        out.put(time.perf_counter() - began)  # type: ignore[attr-defined]
    rpc.shutdown()


def by_rpc(steps: int) -> float:
    """Samples a second."""
    context = get_context("spawn")
    with tempfile.TemporaryDirectory() as place:
        out = context.Queue()
        members = [
            context.Process(target=member, args=(rank, f"{place}/meet", steps, out)) for rank in range(3)
        ]
        for each in members:
            each.start()
        seconds = max(out.get(), out.get())
        for each in members:
            each.join()
    return steps * BATCH / seconds


# --- both in one run --------------------------------------------------------------------------------------------------


def by_atoll(strategy: str, steps: int) -> float:
    """Samples a second, without the first of six reports."""
    run = atoll.train(
        net,
        samples(),
        strategy,
        workers=2,
        steps=steps,
        every=-(-steps // 6),
        batch=BATCH,
        lr=LR,
        test=None,
        threads=1,
    )
    return float(run.figures["steps_per_second"]) * BATCH


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args()
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    os.environ.setdefault("TP_SOCKET_IFNAME", "lo")
    systems = {
        "ddp": lambda: by_atoll("ddp", given.steps),
        "ps:async": lambda: by_atoll("ps:async", given.steps),
        "ps:bsp": lambda: by_atoll("ps:bsp", given.steps),
        "hogwild": lambda: by_atoll("hogwild", given.steps),
        "torch rpc": lambda: by_rpc(given.steps),
    }
    found: dict[str, list[float]] = {name: [] for name in systems}
    spent: dict[str, list[float]] = {name: [] for name in systems}
    for _ in range(given.repeat):
        for name, measured in systems.items():
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            found[name].append(measured())
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            spent[name].append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    ratios = {
        base: statistics.median(a / b for a, b in zip(found["ps:async"], found[base], strict=True))
        for base in systems
    }
    for name in systems:
        print(
            f"{name:10} {statistics.median(found[name]):8.0f} samples/s   {statistics.median(spent[name]):6.2f} s of"
            f" processors   ps:async is {ratios[name]:.2f} times as fast"
        )
    if given.json is not None:
        given.json.write_text(
            json.dumps({"samples_per_second": found, "cpu_seconds": spent, "ratios": ratios})
        )


if __name__ == "__main__":
    main()
