"""How fast: the workloads, cohorts of small clients, convolutions, an eager yardstick, and TF32."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from gpu_runner import Case, Json, Part, Setting
from numpy.typing import NDArray
from peers.networks import network
from torch import Tensor, nn
from workloads import SEED, W1, W2, Workload, arrays

import atoll

Client = tuple[NDArray[np.float32], NDArray[np.int64]]


def parts(setting: Setting) -> list[Part]:
    """The parts of this file, in the order in which they run."""
    return [workloads(), cohorts(setting), convolutions(setting), yardstick(), tf32()]


# --- data and rounds ----------------------------------------------------------------------------------------


def scaled(work: Workload, setting: Setting) -> Workload:
    """The workload, or the smallest one with its network for a dry run."""
    return replace(work, clients=3, samples=20, cohort=2) if setting.quick else work


@cache
def images(work: Workload, quick: bool) -> list[Client]:
    """The clients of a workload: MNIST where `ATOLL_DATA` has it, else of the same size."""
    if quick:
        return random_clients([work.samples] * work.clients, (1, 28, 28))
    root = os.environ.get("ATOLL_DATA")
    if root and not (Path(root) / "mnist" / "mnist.npz").exists():
        del os.environ["ATOLL_DATA"]
    found = arrays(work)
    return list(zip(found.x, found.y, strict=True))


def random_clients(sizes: Sequence[int], shape: tuple[int, ...]) -> list[Client]:
    """Clients of so many random samples each, in ten classes."""
    rng = np.random.default_rng(SEED)
    ends = np.cumsum(sizes)[:-1]
    x = np.split(rng.random((sum(sizes), *shape), dtype=np.float32), ends)
    return list(zip(x, np.split(rng.integers(0, 10, sum(sizes)), ends), strict=True))


def rounds(
    model: Callable[[], nn.Module],
    clients: Sequence[Client],
    setting: Setting,
    *,
    cohort: int,
    lr: float = 0.1,
    engine: str = "batched",
    repeat: int = 5,
) -> Json:
    """Figures of federated averaging, one epoch in batches of 10: the first round, and the median of later ones."""
    federation = atoll.Federation(
        model, atoll.data.from_clients(clients, test=None, classes=10), atoll.FedAvg(lr=lr, batch_size=10),
        rounds=1000, cohort=cohort, seed=0, engine=engine, workers=1 if setting.quick else None,
        device=str(setting.device), eval_every=0,
    )  # fmt: skip
    played: list[atoll.Round] = []

    def play() -> None:
        played.append(federation.round())

    try:
        first = setting.median(play, 1, warm_up=0)
        seconds = setting.median(play, 1 if setting.quick else repeat)
    finally:
        federation.engine.close()
    # A client's steps in one epoch: whole batches of 10 and what is left.
    steps = [sum(-(-len(clients[k][1]) // 10) for k in each.cohort) for each in played[-repeat:]]
    return {
        "s a round": seconds,
        "first s": first,
        "steps": round(float(np.mean(steps))),
        "steps/s": round(float(np.mean(steps)) / seconds),
    }


# --- the parts ----------------------------------------------------------------------------------------------


def workload(work: Workload, setting: Setting) -> Json:
    work = scaled(work, setting)
    clients = images(work, setting.quick)
    return rounds(lambda: network(work), clients, setting, cohort=work.cohort, lr=work.lr)


def workloads() -> Part:
    cases = [Case(work.name, partial(workload, work), expect=20) for work in (W1, W2)]
    return Part("workloads", "W1 and W2, batched: cohort 10, batch 10", cases)


def cohort(size: int, equal: bool, setting: Setting) -> Json:
    """All clients take part in every round; 50 samples each, or 50 on average with a long tail."""
    samples = 20 if setting.quick else 50
    sizes = [samples] * size
    if not equal:
        drawn = np.random.default_rng(SEED).lognormal(0.0, 0.75, size)
        sizes = np.clip(np.rint(drawn / drawn.mean() * samples), 5, 6 * samples).astype(int).tolist()
    clients = random_clients(sizes, (1, 28, 28))
    return rounds(lambda: network(W1), clients, setting, cohort=size, repeat=3)


def cohorts(setting: Setting) -> Part:
    cases = [
        Case(
            f"{size} clients, {'equal' if equal else 'unequal'}",
            partial(cohort, size, equal),
            expect=10 if equal or size < 1000 else 20,
        )
        for size in ((4,) if setting.quick else (10, 100, 1000))
        for equal in (True, False)
    ]
    return Part("cohorts", "Cohorts of small clients (2NN, 50 samples on average), batched", cases)


class Residual(nn.Module):
    """A small residual network for images [b, 3, 32, 32] after He et al. (2016), with GroupNorm: 0.3 M parameters."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        widths = (width, width, 2 * width, 4 * width)
        self.down = nn.ModuleList(
            nn.Conv2d(i, o, 1, stride=stride)
            for i, o, stride in zip(widths, widths[1:], (1, 2, 2), strict=False)
        )
        self.first = nn.ModuleList(
            nn.Conv2d(i, o, 3, stride=stride, padding=1)
            for i, o, stride in zip(widths, widths[1:], (1, 2, 2), strict=False)
        )
        self.second = nn.ModuleList(nn.Conv2d(o, o, 3, padding=1) for o in widths[1:])
        self.norms = nn.ModuleList(nn.GroupNorm(8, o) for o in widths[1:])
        self.head = nn.Linear(widths[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for down, first, second, norm in zip(self.down, self.first, self.second, self.norms, strict=True):
            x = F.relu(down(x) + second(F.relu(norm(first(x)))))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


PICTURES: dict[str, Callable[[], nn.Module]] = {
    "lenet": lambda: atoll.models.lenet((3, 32, 32)),
    "cnn": lambda: atoll.models.cnn((3, 32, 32)),
    "residual": Residual,
}


def convolution(name: str, engine: str, setting: Setting) -> Json:
    """Cohort 10 of clients with 50 images, batch 10."""
    count, samples = (2, 10) if setting.quick else (10, 50)
    clients = random_clients([samples] * count, (3, 32, 32))
    return rounds(PICTURES[name], clients, setting, cohort=count, lr=0.01, engine=engine, repeat=3)


def convolutions(setting: Setting) -> Part:
    cases = [
        Case(f"{name}, {engine}", partial(convolution, name, engine), expect=10)
        for name in (["lenet"] if setting.quick else PICTURES)
        for engine in ("loop", "batched")
    ]
    return Part("convolutions", "Random 3 x 32 x 32 images, 10 clients x 50: loop and batched", cases)


def eager(work: Workload, setting: Setting) -> Json:
    """One module on the device, clients one after the other, plain autograd and `torch.optim.SGD`.

    Data, module and sums stay on the device; nothing is copied to the host within a round.
    """
    work = scaled(work, setting)
    clients = images(work, setting.quick)
    x = torch.from_numpy(np.stack([c[0] for c in clients])).to(setting.device)
    y = torch.from_numpy(np.stack([c[1] for c in clients])).to(setting.device)
    module = network(work).to(setting.device)
    params = list(module.parameters())
    server = [p.detach().clone() for p in params]
    optimizer = torch.optim.SGD(params, lr=work.lr)
    rng = np.random.default_rng(SEED)

    def play() -> None:
        sums = [torch.zeros_like(p) for p in server]
        for client in rng.choice(work.clients, work.cohort, replace=False):
            with torch.no_grad():
                torch._foreach_copy_(params, server)
            order = torch.from_numpy(rng.permutation(work.samples)).to(setting.device)
            for rows in order.split(work.batch):
                optimizer.zero_grad()
                F.cross_entropy(module(x[client][rows]), y[client][rows]).backward()
                optimizer.step()
            with torch.no_grad():
                torch._foreach_add_(sums, torch._foreach_sub(params, server), alpha=1 / work.cohort)
        torch._foreach_add_(server, sums)

    seconds = setting.median(play, 1 if setting.quick else 3)
    steps = work.cohort * work.steps
    return {"s a round": seconds, "steps": steps, "steps/s": round(steps / seconds)}


def yardstick() -> Part:
    cases = [Case(work.name, partial(eager, work), expect=10) for work in (W1, W2)]
    return Part("eager", "Yardstick: one module on the device, clients in turn, torch.optim.SGD", cases)


def with_tf32(on: bool, setting: Setting) -> Json:
    switches = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = on
        return workload(W2, setting)
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value


def tf32() -> Part:
    cases = [
        Case(f"W2, TF32 {'on' if on else 'off'}", partial(with_tf32, on), expect=15, needs_cuda=True)
        for on in (False, True)
    ]
    return Part("tf32", "W2 with TF32 in products of matrices and convolutions", cases)
