"""Do the engines agree on this device? The loop on the CPU is the definition; the others are held against it.

Every method trains every model for three rounds: in the loop and batched, on the CPU and on the device. TF32 is off
here: its products have ten bits, and what is asked is whether the mathematics is the same.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np
import torch
from gpu_runner import Case, Json, Part, Setting, attempt
from torch import Tensor, nn

import atoll
from atoll.callbacks import Callback
from atoll.methods import METHODS

ROUNDS = 3
STOP = 2
FEW: dict[str, Callable[..., atoll.Method]] = {
    "FedAvg": atoll.FedAvg,
    "FedProx": partial(atoll.FedProx, mu=0.1),
    "SCAFFOLD": atoll.Scaffold,
    "Ditto": partial(atoll.Ditto, lam=0.5),
    "FedAdam": atoll.FedAdam,
}


@dataclass(frozen=True)
class Network:
    """A model to agree on: how it is made, what a sample looks like, and how far engines may lie apart.

    `tolerance` is relative to the way the model went. Rounding alone makes distances of about 1e-6 in three rounds;
    BatchNorm divides by deviations of small batches and enlarges it.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    tolerance: float
    tokens: bool = False


def normalising() -> nn.Module:
    """Convolutions with BatchNorm behind each."""
    return atoll.models.with_batchnorm(
        nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10),
        )
    )  # fmt: skip


def dropping() -> nn.Module:
    """Convolution and dropout, of channels and of units."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout2d(0.2), nn.Flatten(),
        nn.Linear(8 * 64, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10),
    )  # fmt: skip


NETWORKS = {
    "MLP": Network(lambda: atoll.models.mlp(40, 32, 10), (40,), 1e-4),
    "BatchNorm CNN": Network(normalising, (1, 16, 16), 1e-3),
    "dropout CNN": Network(dropping, (1, 16, 16), 1e-3),
    "LSTM": Network(lambda: atoll.models.lstm(10, 8, 16, 2), (4,), 1e-3, tokens=True),
}

# --- how far models lie apart -------------------------------------------------------------------------------

State = Mapping[str, Tensor]


def distance(found: State, wanted: State, start: State) -> float:
    """||found - wanted|| / ||wanted - start|| over all floating-point tensors together.

    Infinite where names, shapes or whole numbers differ, or a number is not finite.
    """
    if found.keys() != wanted.keys():
        return math.inf
    apart = moved = 0.0
    for name, value in wanted.items():
        own, old = found[name].cpu(), start[name].cpu()
        if own.shape != value.shape:
            return math.inf
        if not value.is_floating_point():
            if not torch.equal(own, value.cpu()):
                return math.inf
            continue
        apart += float((own.double() - value.cpu().double()).square().sum())
        moved += float((value.cpu().double() - old.double()).square().sum())
    if not math.isfinite(apart) or not math.isfinite(moved):
        return math.inf
    return math.sqrt(apart / moved) if moved else (0.0 if apart == 0 else math.inf)


def apart(found: nn.Module, wanted: nn.Module, start: nn.Module) -> float:
    """The larger of the distances of parameters and of buffers: running statistics move much further than weights."""
    parts = (dict(m.named_parameters()) for m in (found, wanted, start))
    buffers = (dict(m.named_buffers()) for m in (found, wanted, start))
    with torch.no_grad():
        return max(distance(*parts), distance(*buffers))


# --- the work -----------------------------------------------------------------------------------------------


def clients(network: Network, *, all_splits: bool = False) -> atoll.FederatedData:
    """Six clients of unequal size, so that batches are padded and clients end at different steps.

    With `all_splits` there are validation samples and public ones too, for the methods that read them.
    """
    rng = np.random.default_rng(5)
    made = {}
    for k, size in enumerate((40, 33, 25, 24, 17, 16)):
        if network.tokens:
            x = rng.integers(0, 10, (size, *network.shape))
            made[f"{k}"] = (x, np.roll(x, -1, axis=1))
        else:
            x = rng.standard_normal((size, *network.shape)).astype(np.float32)
            made[f"{k}"] = (x, rng.integers(0, 10, size))
    if not all_splits:
        return atoll.data.from_clients(made, test=0.1, classes=10)
    data = atoll.data.from_clients(made, test=0.1, validation=0.25, classes=10)
    return data.publish(torch.randn(12, *network.shape, generator=torch.Generator().manual_seed(2)))


def settings(method: str) -> Json:
    """Small settings of a method, by its name among all."""
    found: Json = {"lr": 0.05}
    if "batch_size" in {field.name for field in fields(METHODS[method])}:
        found["batch_size"] = 8
    return found | {"feddf": {"distill_steps": 5}, "pfedhn": {"steps": 6}, "pfedhn-pc": {"steps": 6}}.get(
        method, {}
    )


def trained(
    network: Network,
    method: str,
    engine: str,
    device: torch.device,
    rounds: int,
    cohort: int = 4,
    **more: Any,
) -> list[nn.Module]:
    """The global model after some rounds, and two clients' own models where the method has such."""
    few = method in FEW
    federation = atoll.Federation(
        network.make, clients(network, all_splits=not few),
        FEW[method](lr=0.05, batch_size=8, epochs=1) if few else method, rounds=max(rounds, 1),
        cohort=cohort, seed=3, engine=engine, workers=1, device=str(device), eval_every=0,
        **more | ({} if few else settings(method)),
    )  # fmt: skip
    try:
        cohorts = [federation.round().cohort for _ in range(rounds)]
        # HeteroFL's clients keep narrower models than the one they are given as.
        own = cohorts[-1][:2] if cohorts and federation.method.personalised and method != "heterofl" else []
        return [federation.run().model, *(federation.personal(client) for client in own)]
    finally:
        federation.engine.close()


@contextmanager
def exact_products() -> Iterator[None]:
    """TF32 switched off inside, for products of matrices and for convolutions."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def agree(network: Network, method: str, setting: Setting, **more: Any) -> Json:
    """Distances of every engine to the loop on the CPU; failed where one is beyond the tolerance or does not run.

    Further settings of the federation come by name.
    """
    cpu = torch.device("cpu")
    others = [("batched", cpu)]
    if setting.cuda:
        others += [("loop", setting.device), ("batched", setting.device)]
    cohort = 2 if setting.quick else 4
    # Adam's steps, which FedDF takes on the server, make much of rounding where little is left to learn.
    tolerance = 1e-3 if method == "feddf" else network.tolerance
    row: Json = {"tolerance": tolerance, "batched cpu": None}
    wrong = []
    with exact_products():
        start = trained(network, method, "loop", cpu, 0, cohort, **more)[0]
        wanted = trained(network, method, "loop", cpu, ROUNDS, cohort, **more)
        for engine, device in others:
            name = f"{engine} {device.type}"
            found, error = attempt(partial(trained, network, method, engine, device, ROUNDS, cohort, **more))
            if error is not None:
                row[name] = "error"
                wrong.append(f"{name}: {error}")
                continue
            row[name] = worst = max(apart(f, w, start) for f, w in zip(found, wanted, strict=True))
            if not worst <= tolerance:
                wrong.append(f"{name} lies {worst:.2e} apart, allowed are {tolerance:.0e}")
    if not setting.cuda:
        row["loop cuda"] = row["batched cuda"] = "needs CUDA"
    return {**row, "failed": "\n".join(wrong)} if wrong else row


class StopAfter(Callback):
    """Stops a run after so many rounds."""

    def __init__(self, number: int) -> None:
        self.number = number

    def on_round_end(self, federation: atoll.Federation, record: atoll.Round) -> None:
        if record.number == self.number:
            federation.stop()


def resumed(network: Network, method: str, setting: Setting) -> Json:
    """Four rounds against two, a checkpoint, and two more in another federation: are all bits the same?"""

    def federation(**more: Any) -> atoll.Federation:
        return atoll.Federation(
            network.make, clients(network), FEW[method](lr=0.05, batch_size=8, epochs=1), rounds=2 * STOP,
            cohort=2 if setting.quick else 4, seed=3, engine="batched", workers=1, device=str(setting.device),
            eval_every=0, **more,
        )  # fmt: skip

    with tempfile.TemporaryDirectory() as place:
        start = federation().run().model
        again = federation()
        wanted = again.fit().model
        again.engine.close()
        federation(runs=place, checkpoint=1, callbacks=[StopAfter(STOP)]).fit()
        found = federation(runs=place, checkpoint=1).resume("last").fit().model
        repeated = federation().fit().model
    row: Json = {"resumed": apart(found, wanted, start), "repeated": apart(repeated, wanted, start)}
    wrong = [f"{name} lies {far:.2e} apart" for name, far in row.items() if far]
    return {**row, "failed": "\n".join(wrong)} if wrong else row


def parts(setting: Setting) -> list[Part]:
    """Every model with FedAvg first, then the other methods: what is likely to break comes early. Then all methods."""
    pairs = [(network, method) for method in FEW for network in NETWORKS]
    if setting.quick:
        pairs = [pair for pair in pairs if pair[1] == ("Ditto" if pair[0] == "MLP" else "FedAvg")]
    every = [("MLP", name) for name in METHODS if name not in ("fedbn", "crossmodal")] + [
        ("BatchNorm CNN", "fedbn")
    ]
    if setting.quick:
        every = [pair for pair in every if pair[1] in ("fedbn", "ifca")]
    title = f"||w - w'|| / ||w' - w_0|| after {ROUNDS} rounds, TF32 off"
    agreeing = [
        Part(
            name,
            f"{what} against the loop on the CPU: {title}",
            [
                Case(f"{network}, {method}", partial(agree, NETWORKS[network], method), expect=6.0)
                for network, method in those
            ],
        )
        for name, what, those in (("agree", "Engines", pairs), ("methods", "Every method", every))
    ]
    again = [(network, method) for network in NETWORKS for method in ("FedAvg", "SCAFFOLD")]
    return [
        *agreeing,
        Part(
            "resume",
            f"{2 * STOP} rounds against {STOP} and as many more from a checkpoint, and against themselves, batched",
            [
                Case(f"{network}, {method}", partial(resumed, NETWORKS[network], method), expect=6.0)
                for network, method in (again[:1] if setting.quick else again)
            ],
        ),
    ]
