"""Steps that hide single samples (`dp_sgd`), beside Opacus: the same data, model, batches, clipping and noise.

    python benchmarks/dpsgd.py [--epochs 1] [--seeds 0,1] [--write]

Needs `opacus` and MNIST (ATOLL_DATA). One client has all 60,000 pictures; batches are Poisson with 64 on average, C = 1
and z = 1.1 on both sides, plain SGD with lr 0.1 from the same initial model. Processor time is that of a step on one
thread, batches and all, the smallest of some rounds that take turns; Opacus with its two ways to get norms ("hooks"
hold a gradient for every sample, "ghost" goes backwards twice). Each draws noise of its own.
"Sums apart" are clipped sums of one batch, without noise, beside their norm.
`--write` keeps the table in results/dpsgd.{json,md}.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from opacus import PrivacyEngine
from opacus.accountants import PRVAccountant, RDPAccountant
from torch import Tensor, nn

import atoll
from atoll.dpsgd.fits import mechanism, private_task
from atoll.dpsgd.records import DPSGD
from atoll.engines.loop import Loop
from atoll.engines.sequential import Sequential
from atoll.task import Batch, Task

BATCH, LR, CLIP, NOISE, DELTA = 64, 0.1, 1.0, 1.1, 1e-5
ROUNDS, STEPS = 5, 60  # of processor time
RESULTS = Path(__file__).parent / "results"


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 8, 2, padding=3), nn.ReLU(), nn.MaxPool2d(2, 1), nn.Conv2d(16, 32, 4, 2), nn.ReLU(),
        nn.MaxPool2d(2, 1), nn.Flatten(), nn.Linear(512, 32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip


MODELS: dict[str, Callable[[], nn.Module]] = {"2NN": lambda: atoll.models.mlp(784, 200, 200, 10), "CNN": cnn}


def started(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return make()


def ours(
    module: nn.Module, data: Any, seed: int, steps: int | None, rounds: int, **kw: Any
) -> atoll.Federation:
    """A federation of one client, whose captured steps run in this process."""
    run = atoll.Federation(
        module, data, "fedavg", lr=LR, batch_size=BATCH, steps=steps, rounds=rounds, engine="loop", device="cpu",
        eval_every=0, seed=seed, **kw,
    )  # fmt: skip
    cpu = torch.device("cpu")
    run.simulation.engine = Loop(run.task, data, cpu, Sequential(run.task, data, cpu))
    return run


class Theirs:
    """Opacus, as its documentation has it."""

    def __init__(self, module: nn.Module, data: Any, mode: str) -> None:
        torch.manual_seed(1)
        train = data.samples(0)
        loader = torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(train.inputs, train.targets), batch_size=BATCH
        )
        module = copy.deepcopy(module)
        self.loss: Any = nn.CrossEntropyLoss()
        parts = PrivacyEngine().make_private(
            module=module, optimizer=torch.optim.SGD(module.parameters(), lr=LR), data_loader=loader,
            criterion=self.loss, noise_multiplier=NOISE, max_grad_norm=CLIP, grad_sample_mode=mode,
        )  # fmt: skip
        self.model, self.optimizer, self.loader = parts[0], parts[1], parts[-1]
        if mode == "ghost":
            self.loss = parts[2]
        self.batches: Iterator[Any] = iter(())

    def step(self) -> None:
        batch = next(self.batches, None)
        if batch is None:
            self.batches = iter(self.loader)
            batch = next(self.batches)
        self.optimizer.zero_grad()
        self.loss(self.model(batch[0]), batch[1]).backward()
        self.optimizer.step()

    def accuracy(self, test: tuple[Tensor, Tensor]) -> float:
        return right(self.model, test)


@torch.no_grad()
def right(model: nn.Module, test: tuple[Tensor, Tensor]) -> float:
    return float((model(test[0]).argmax(1) == test[1]).float().mean())


def apart(module: nn.Module, data: Any) -> float:
    """How far the clipped sums of both sides are apart for one batch, without noise, beside their norm."""
    train = data.samples(0)
    inputs, targets = train.inputs[:BATCH], train.targets[:BATCH]
    other = Theirs(module, data, "hooks")
    other.loss(other.model(inputs), targets).backward()
    other.optimizer.clip_and_accumulate()
    theirs = torch.cat([p.summed_grad.reshape(-1) for p in other.optimizer.params])
    task = private_task(Task(module), DPSGD(CLIP, 0.0), inputs[:3], targets[:3])
    batch = Batch(inputs, targets, torch.ones(BATCH), torch.tensor(0))
    with torch.no_grad():
        total = task.clipped_sum(*task.initial(), batch)
    return float((total.flat() - theirs).norm() / theirs.norm())


def clocked(work: Callable[[], Any], steps: int) -> float:
    """Milliseconds of processor time a step."""
    start = time.process_time()
    work()
    return (time.process_time() - start) / steps * 1e3


def compared(
    name: str, data: Any, test: tuple[Tensor, Tensor], epochs: int, seeds: list[int]
) -> dict[str, Any]:
    make = MODELS[name]
    module, dp = started(make, 0), f"{CLIP},{NOISE}"
    private = ours(module, data, 0, STEPS, ROUNDS + 1, dp_sgd=dp)
    plain = ours(module, data, 0, STEPS, ROUNDS + 1)
    hooks, ghost = Theirs(module, data, "hooks"), Theirs(module, data, "ghost")
    sides: dict[str, Callable[[], Any]] = {
        "atoll": private.round,
        "opacus hooks": lambda: [hooks.step() for _ in range(STEPS)],
        "opacus ghost": lambda: [ghost.step() for _ in range(STEPS)],
        "atoll, not private": plain.round,
    }
    for work in sides.values():  # captures, first batches
        work()
    spent: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(ROUNDS):
        for side, work in sides.items():
            spent[side].append(clocked(work, STEPS))
    reached: dict[str, list[float]] = {"atoll": [], "opacus": []}
    for seed in seeds:
        module = started(make, seed)
        run = ours(module, data, seed, None, epochs, dp_sgd=dp)
        for _ in range(epochs):
            run.round()
        reached["atoll"].append(right(run.task.load(*run.method.model(run.state)).eval(), test))
        other = Theirs(module, data, "hooks")
        for _ in range(epochs * len(other.loader)):
            other.step()
        reached["opacus"].append(other.accuracy(test))
    far = apart(started(make, 0), data)
    return {"apart": far, "cpu_ms": {side: min(each) for side, each in spent.items()}, "accuracy": reached}


def epsilons(samples: int, epochs: int) -> dict[str, Any]:
    """What Opacus' accountants say of the mechanism that ours is."""
    q, steps, z = mechanism(DPSGD(CLIP, NOISE), atoll.FedAvg(batch_size=BATCH, epochs=epochs), samples)
    found: dict[str, Any] = {"rate": q, "steps": steps, "noise": z, "delta": DELTA}
    for name, kind in (("rdp", RDPAccountant), ("prv", PRVAccountant)):
        accountant = kind()
        accountant.history = [(z, q, steps)]
        found[name] = accountant.get_epsilon(DELTA)
    return found


def table(found: dict[str, Any]) -> str:
    spent = found["epsilon"]
    lines = [
        f"MNIST in one place, {found['epochs']} epoch(s) of Poisson batches of {BATCH}, C = {CLIP}, z = {NOISE}. By",
        f"`mechanism`: q = {spent['rate']:.6f}, {spent['steps']} steps; epsilon at delta = {DELTA} by Opacus'",
        f"accountants {spent['rdp']:.3f} (RDP), {spent['prv']:.3f} (PRV). Torch {found['torch']}, Opacus "
        f"{found['opacus']}, one thread.",
        "",
        "| model | ms a step: atoll | opacus hooks | opacus ghost | atoll, not private "
        "| accuracy: atoll | opacus | sums apart |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, each in found["models"].items():
        ms = " | ".join(f"{value:.2f}" for value in each["cpu_ms"].values())
        got = " | ".join(
            ", ".join(f"{100 * value:.2f}" for value in values) for values in each["accuracy"].values()
        )
        lines.append(f"| {name} | {ms} | {got} | {each['apart']:.0e} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    import opacus

    whole = atoll.data.load("mnist")
    data = whole.partition(atoll.data.IID(1), seed=0)
    tests = data.test_set
    test = (tests.inputs, tests.targets)
    seeds = [int(each) for each in given.seeds.split(",")]
    found: dict[str, Any] = {"torch": torch.__version__, "opacus": opacus.__version__, "epochs": given.epochs}
    found |= {"seeds": seeds, "epsilon": epsilons(data.size(0), given.epochs), "models": {}}
    for name in given.models.split(","):
        found["models"][name] = compared(name, data, test, given.epochs, seeds)
        print(table(found))
    if given.write:
        (RESULTS / "dpsgd.json").write_text(json.dumps(found, indent=1) + "\n")
        (RESULTS / "dpsgd.md").write_text(table(found))


if __name__ == "__main__":
    main()
