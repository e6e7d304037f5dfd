"""Steps that hide single samples (`dp_sgd`), beside Opacus: the same data, model, batches, clipping and noise.

    python benchmarks/dpsgd.py [--what steps,accuracy,accountants] [--epochs 1] [--seeds 30] [--write]

Needs `opacus` and MNIST (ATOLL_DATA). Batches are Poisson with 64 on average, C = 1 and z = 1.1 on both sides, plain
SGD with lr 0.1 from the same initial model.

steps: processor time of one on one thread, batches and all, the smallest of some rounds that take turns, where one
client has all 60,000 pictures; Opacus with its two ways to get norms ("hooks" hold a gradient for every sample, "ghost"
goes backwards twice). "Apart" is how far what both descend along lies apart for one batch, without noise, beside its
norm.
accuracy: on the test set after training on 19,200 pictures. These are 300 batches an epoch; with 60,000, Opacus rounds
its expected batch down to 63, and its steps are 1.6 % longer. Each side draws batches and noise of its own, from
the initial model that a seed gives to both: differences are of pairs. "Together" is how far models lie apart, beside
the way they went, after all these steps where Opacus is handed our batches and our noise.
accountants: epsilon of the same mechanism by each; Opacus' PRV is asked for a bound that adds 0.002.
`--write` keeps tables in results/dpsgd.{json,md}; what was not asked for stays as it was.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from opacus import PrivacyEngine
from opacus.accountants import PRVAccountant, RDPAccountant
from opacus.optimizers import optimizer as drawing
from torch import Tensor, nn

import atoll
from atoll import seeds
from atoll.dpsgd.fits import mechanism, private_task
from atoll.dpsgd.records import DPSGD, from_stream, noise_key, sealed
from atoll.engines.loop import Loop
from atoll.engines.reading import reading
from atoll.engines.sequential import Sequential
from atoll.privacy import Gaussian, Poisson, epsilon
from atoll.task import Batch, Task
from atoll.tensors import Tensors

BATCH, LR, CLIP, NOISE = 64, 0.1, 1.0, 1.1
FEW = 19_200  # samples of the part about accuracy
ASKED = (
    (64 / 60_000, 938, 1.1, 1e-5),
    (64 / 60_000, 9_380, 1.1, 1e-5),
    (0.001, 1_500, 0.616, 1e-6),
    (0.01, 1_000, 1.0, 1e-6),
    (0.05, 2_000, 1.5, 1e-5),
    (0.2, 500, 4.0, 1e-7),
)
"""(rate, steps, noise, delta) of which accountants tell the epsilon."""
OFF = 0.002  # what PRV adds
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

    def __init__(self, module: nn.Module, data: Any, mode: str, seed: int = 1) -> None:
        torch.manual_seed(seed)
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
        self.advance(batch)

    def advance(self, batch: Any) -> None:
        self.optimizer.zero_grad()
        self.loss(self.model(batch[0]), batch[1]).backward()
        self.optimizer.step()

    def accuracy(self, test: tuple[Tensor, Tensor]) -> float:
        return right(self.model, test)


@torch.no_grad()
def right(model: nn.Module, test: tuple[Tensor, Tensor]) -> float:
    return float((model(test[0]).argmax(1) == test[1]).float().mean())


def apart(module: nn.Module, data: Any) -> float:
    """How far what both sides descend along is apart for one batch, without noise, beside its norm."""
    train = data.samples(0)
    inputs, targets = train.inputs[:BATCH], train.targets[:BATCH]
    other = Theirs(module, data, "hooks")
    other.optimizer.noise_multiplier = 0.0
    other.loss(other.model(inputs), targets).backward()
    other.optimizer.pre_step()
    theirs = torch.cat([p.grad.reshape(-1) for p in other.optimizer.params])
    task = private_task(Task(module), DPSGD(CLIP, 0.0), inputs[:3], targets[:3])
    batch = sealed(Batch(inputs, targets, torch.ones(BATCH), torch.tensor(0)), torch.tensor(float(BATCH)))
    with torch.no_grad():
        found = task.gradient(*task.initial(), batch)[0]
    return float((found.flat() - theirs).norm() / theirs.norm())


def together(make: Callable[[], nn.Module], data: Any, steps: int, seed: int = 0) -> float:
    """How far apart both sides' models are, beside the way they went, after steps with one side's batches and noise."""
    module = started(make, seed)
    run = ours(module, data, seed, steps, 1, dp_sgd=f"{CLIP},{NOISE}")
    first = run.method.model(run.state)[0]
    plan = run.method.plan()._replace(poisson=True)
    read = reading(plan, data.size(0), seeds.rng(seed, "order", 1, 0))
    keys = seeds.fold(torch.tensor(seeds.addresses(seed, "step", 1, [0])), torch.arange(steps))
    run.round()
    other, train = Theirs(module, data, "hooks"), data.samples(0)
    queue: list[Tensor] = []
    theirs = drawing._generate_noise
    drawing._generate_noise = lambda std, **kw: queue.pop(0) * std
    try:
        for index, mask, key in zip(read.index, read.mask, keys, strict=True):
            noise = from_stream(noise_key(key, 1), first)
            queue.extend(noise[name] for name, _ in module.named_parameters())
            rows = torch.from_numpy(index[mask > 0])
            other.advance((train.inputs[rows], train.targets[rows]))
    finally:
        drawing._generate_noise = theirs
    found = Tensors(
        {
            name: p.detach()
            for (name, _), p in zip(module.named_parameters(), other.optimizer.params, strict=True)
        }
    )
    return float((run.method.model(run.state)[0] - found).norm() / (found - first).norm())


def clocked(work: Callable[[], Any], steps: int) -> float:
    """Milliseconds of processor time a step."""
    start = time.process_time()
    work()
    return (time.process_time() - start) / steps * 1e3


def timed(make: Callable[[], nn.Module], data: Any) -> dict[str, float]:
    """Milliseconds of processor time a step, by side."""
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
    return {side: min(each) for side, each in spent.items()}


def trained(
    make: Callable[[], nn.Module], data: Any, test: tuple[Tensor, Tensor], epochs: int, count: int
) -> dict[str, list[float]]:
    """Accuracies, by side and seed."""
    reached: dict[str, list[float]] = {"atoll": [], "opacus": []}
    dp = f"{CLIP},{NOISE}"
    for seed in range(count):
        module = started(make, seed)
        run = ours(module, data, seed, None, epochs, dp_sgd=dp)
        for _ in range(epochs):
            run.round()
        reached["atoll"].append(right(run.task.load(*run.method.model(run.state)).eval(), test))
        other = Theirs(module, data, "hooks", 1000 + seed)
        for _ in range(epochs * len(other.loader)):
            other.step()
        reached["opacus"].append(other.accuracy(test))
    return reached


def epsilons() -> list[dict[str, Any]]:
    """What accountants say of the same mechanism; the first is that of an epoch here."""
    q, steps, z = mechanism(DPSGD(CLIP, NOISE), atoll.FedAvg(batch_size=BATCH, epochs=1), 60_000)
    assert (q, steps, z) == ASKED[0][:3]
    found = []
    for q, steps, z, delta in ASKED:
        ours = epsilon([Gaussian(noise=z, sampling=Poisson(q), count=steps)], delta)
        prv, rdp = PRVAccountant(), RDPAccountant()
        prv.history = rdp.history = [(z, q, steps)]
        found.append(
            {
                **{"rate": q, "steps": steps, "noise": z, "delta": delta, "rdp": ours.rdp, "pld": ours.pld},
                "opacus prv": prv.get_epsilon(delta, eps_error=OFF),
                "opacus rdp": rdp.get_epsilon(delta),
            }
        )
    return found


def table(found: dict[str, Any]) -> str:
    lines = [
        f"Torch {found['torch']}, Opacus {found['opacus']}, one thread; C = {CLIP}, z = {NOISE}, batches of {BATCH}.",
        "",
    ]
    if "steps" in found:
        lines += [
            "| model | ms a step: atoll | opacus hooks | opacus ghost | atoll, not private | apart |",
            "|---|---|---|---|---|---|",
        ]
        for name, each in found["steps"].items():
            ms = " | ".join(f"{value:.2f}" for value in each["cpu_ms"].values())
            lines.append(f"| {name} | {ms} | {each['apart']:.0e} |")
        lines.append("")
    if "accuracy" in found:
        lines += [
            f"Accuracy in % after epochs of {FEW:,} pictures: mean and deviation over seeds, and the difference of",
            "pairs with its standard error:",
            "",
            "| model | epochs | seeds | atoll | opacus | atoll - opacus | worst pair | best pair | together |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for name, each in found["accuracy"].items():
            pairs = [100 * (a - b) for a, b in zip(each["atoll"], each["opacus"], strict=True)]
            sides = [
                f"{100 * statistics.fmean(each[side]):.2f} (± {100 * statistics.stdev(each[side]):.2f})"
                for side in ("atoll", "opacus")
            ]
            mean, error = statistics.fmean(pairs), statistics.stdev(pairs) / len(pairs) ** 0.5
            lines.append(
                f"| {name} | {each['epochs']} | {len(pairs)} | {' | '.join(sides)} | {mean:+.2f} ± {error:.2f} "
                f"| {min(pairs):+.1f} | {max(pairs):+.1f} | {each['together']:.0e} |"
            )
        lines.append("")
    if "accountants" in found:
        lines += [
            f"Epsilon of so many steps with Poisson batches (PRV adds {OFF:g} to what it finds):",
            "",
            "| rate | steps | z | delta | atoll, PLD | opacus, PRV | atoll, RDP | opacus, RDP |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for each in found["accountants"]:
            said = " | ".join(f"{each[name]:.4f}" for name in ("pld", "opacus prv", "rdp", "opacus rdp"))
            what = f"{each['rate']:.4g} | {each['steps']:,} | {each['noise']:g} | {each['delta']:g}"
            lines.append(f"| {what} | {said} |")
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--what", default="steps,accuracy,accountants")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=30, help="how many, two or more")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    import opacus

    data = atoll.data.load("mnist").partition(atoll.data.IID(1), seed=0)
    test = (data.test_set.inputs, data.test_set.targets)
    kept = RESULTS / "dpsgd.json"
    found: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    found |= {"torch": torch.__version__, "opacus": opacus.__version__}
    what, models = given.what.split(","), {name: MODELS[name] for name in given.models.split(",")}
    if "steps" in what:
        found["steps"] = {
            name: {"cpu_ms": timed(make, data), "apart": apart(started(make, 0), data)}
            for name, make in models.items()
        }
    if "accuracy" in what:
        few = fewer(data, test)
        steps = given.epochs * FEW // BATCH
        for name, make in models.items():
            reached = trained(make, few, test, given.epochs, given.seeds)
            found.setdefault("accuracy", {})[name] = {
                "epochs": given.epochs,
                **reached,
                "together": together(make, few, steps),
            }
    if "accountants" in what:
        found["accountants"] = epsilons()
    print(table(found))
    if given.write:
        kept.write_text(json.dumps(found, indent=1) + "\n")
        (RESULTS / "dpsgd.md").write_text(table(found))


def fewer(data: Any, test: tuple[Tensor, Tensor]) -> Any:
    """One client with some of the samples, drawn once, none of which are kept for tests."""
    all_, drawn = data.samples(0), torch.randperm(60_000, generator=torch.Generator().manual_seed(5))[:FEW]
    few = atoll.data.from_arrays(all_.inputs[drawn], all_.targets[drawn], test=test)
    made = few.partition(atoll.data.IID(1), seed=0)
    assert made.size(0) == FEW
    return made


if __name__ == "__main__":
    main()
