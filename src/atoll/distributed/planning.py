"""What a training would take: memory and time of each strategy, reckoned from what a model asks for.

Memory is that of tensors between and during steps; Python and torch themselves come on top, and so do an optimiser's
temporaries. Communication is reckoned as if nothing were computed meanwhile: the time of a step is a bound from above
where a strategy overlaps the two (`ddp`, `fsdp`).
"""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from atoll.calling import arguments
from atoll.data import Samples
from atoll.distributed.strategies import STRATEGIES
from atoll.errors import ConfigError
from atoll.machine import threads
from atoll.optimizers import Optimizer
from atoll.task import Task
from atoll.tensors import nbytes

__all__ = ["FORMULAS", "Demand", "Plan", "Setup", "bubble", "demanded", "plans", "quantity"]


@dataclass(frozen=True)
class Demand:
    """What a model asks for, in bytes and seconds.

    Args:
        numbers: trainable parameters.
        size: bytes of all parameters; `trained` of those that are trained, and so of a gradient.
        state: bytes of the optimiser's state.
        activations: bytes that a sample leaves between forward and backward pass.
        handed: bytes of a sample that one layer hands to the next, at most.
        layers: parts of the module that have parameters, and `widest` the bytes of the largest.
        seconds: of a worker for a sample, forward and backward.
    """

    numbers: int
    size: int
    trained: int
    state: int
    activations: float
    handed: float
    layers: int
    widest: int
    seconds: float


@dataclass(frozen=True)
class Setup:
    """Workers, samples in a step of all of them, bytes a second that a worker sends, seconds that a message takes."""

    workers: int
    batch: int
    bandwidth: float
    latency: float = 1e-4


@dataclass(frozen=True)
class Plan:
    """What a strategy takes: bytes of a worker, bytes that it sends a step, seconds of a step."""

    strategy: str
    parameters: float
    gradients: float
    optimizer: float
    activations: float
    more: float
    """Copies that a strategy makes of its own: buckets, gathered layers, what is compared with."""
    bytes: float
    compute: float
    communication: float
    bubble: float = 0.0
    """Share of a step in which a worker has nothing to do."""

    @property
    def memory(self) -> float:
        """Bytes of a worker."""
        return self.parameters + self.gradients + self.optimizer + self.activations + self.more

    @property
    def seconds(self) -> float:
        """Of a step."""
        return self.compute + self.communication

    def to_dict(self, memory: float) -> dict[str, Any]:
        """As JSON has it; `memory` is what a worker has."""
        return {
            **asdict(self),
            "memory": self.memory,
            "seconds": self.seconds,
            "fits": self.memory <= memory,
        }


# --- what a model asks for ------------------------------------------------------------------------------------------


def demanded(
    task: Task, samples: Samples, optimizer: Optimizer, rows: int, flops: float | None = None
) -> Demand:
    """What a model asks for, measured on so many rows: samples are repeated where there are fewer.

    With `flops` a worker's speed is given, in operations a second, and operations are counted; else the best of three
    steps is taken, with one thread of this machine.
    """
    module = copy.deepcopy(task.module).train()
    at = torch.arange(rows) % samples.count
    inputs, targets = samples.inputs.index_select(0, at), samples.targets.index_select(0, at)
    places, names = arguments(module, inputs)

    def step() -> None:
        module.zero_grad()
        task.losses(module(*places, **names), targets).mean().backward()  # type: ignore[no-untyped-call]

    with threads(1), torch.random.fork_rng(devices=[]):
        with _kept(module) as kept, _handed(module) as handed:
            step()
        seconds = _fastest(step) if flops is None else _operations(step) / flops
    params = list(module.parameters())
    trained = [p for p in params if p.requires_grad]
    initial, _ = task.initial()
    parts = [sum(nbytes(p) for p in each.parameters()) for each in module.children()]
    parts = [size for size in parts if size] or [nbytes(params)]
    return Demand(
        sum(p.numel() for p in trained),
        nbytes(params),
        nbytes(trained),
        nbytes(optimizer.init(initial.map(lambda p: p.to("meta")))),
        sum(kept.values()) / rows,
        max(handed, default=0) / rows,
        len(parts),
        max(parts),
        seconds / rows,
    )


@contextmanager
def _kept(module: nn.Module) -> Iterator[dict[int, int]]:
    """Bytes of what is kept for the backward pass, by the place where it lies; the parameters are there anyway."""
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    found: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        place = value.untyped_storage()
        if place.data_ptr() not in own:
            found[place.data_ptr()] = place.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        yield found


@contextmanager
def _handed(module: nn.Module) -> Iterator[list[int]]:
    """Bytes of what the layers give each other."""
    found: list[int] = []

    def note(_: nn.Module, __: Any, given: Any) -> None:
        found.append(nbytes(given))

    hooks = [each.register_forward_hook(note) for each in list(module.children())[:-1]]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _fastest(step: Callable[[], None]) -> float:
    took = []
    for _ in range(3):
        began = time.process_time()  # with one thread, and whoever else uses the machine does not count
        step()
        took.append(time.process_time() - began)
    return min(took)


def _operations(step: Callable[[], None]) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counted:
        step()
    return float(counted.get_total_flops())


# --- what strategies make of it -------------------------------------------------------------------------------------


def _padded(size: float, width: int, numbers: int) -> float:
    """Bytes of so many numbers, padded to a multiple of the workers."""
    return size / numbers * (-(-numbers // width) * width)


def _ring(demand: Demand, setup: Setup, *, name: str, padded: bool) -> Plan:
    """T = 2 (W - 1) alpha + 2 (W - 1) / W N beta; everybody has everything."""
    w = setup.workers
    size = _padded(demand.trained, w, demand.numbers) if padded else demand.trained
    sent = 2 * (w - 1) / w * size
    return Plan(
        name,
        demand.size,
        demand.trained,
        demand.state,
        demand.activations * _part(setup),
        demand.trained / w if padded else demand.trained,  # a part that comes; torch's buckets
        sent,
        demand.seconds * _part(setup),
        2 * (w - 1) * setup.latency + sent / setup.bandwidth,
    )


def _zero1(demand: Demand, setup: Setup) -> Plan:
    """As the ring, in its two halves; of the optimiser's state a worker has 1 / W."""
    found = asdict(_ring(demand, setup, name="zero1", padded=True))
    return Plan(**{**found, "optimizer": demand.state / setup.workers})


def _fsdp(demand: Demand, setup: Setup) -> Plan:
    """1 / W of everything, and one layer at a time whole, with its gradient; parameters are gathered twice."""
    w = setup.workers
    sent = 3 * (w - 1) / w * demand.size
    return Plan(
        "fsdp",
        demand.size / w,
        demand.trained / w,
        demand.state / w,
        demand.activations * _part(setup),
        2 * demand.widest,
        sent,
        demand.seconds * _part(setup),
        3 * demand.layers * (w - 1) * setup.latency + sent / setup.bandwidth,
    )


def bubble(stages: int, micro: int, chunks: int = 1) -> float:
    """Share of a step in which a stage waits: (S - 1) / (v M + S - 1), for GPipe and 1F1B with v = 1."""
    return (stages - 1) / (chunks * micro + stages - 1)


def _pipeline(demand: Demand, setup: Setup) -> Plan:
    """As many stages as workers, of equal cost, four micro-batches for each; 1F1B holds min(S, M) of M at a time."""
    stages = setup.workers
    micro = min(4 * stages, setup.batch)
    idle = bubble(stages, micro)
    sent = (
        2 * demand.handed * setup.batch if stages > 1 else 0.0
    )  # forward to the next, backward to the one before
    return Plan(
        f"pipeline:{stages},{micro}",
        demand.size / stages,
        demand.trained / stages,
        demand.state / stages,
        demand.activations * setup.batch / stages * min(stages, micro) / micro,
        0.0,
        sent,
        demand.seconds * setup.batch / stages / (1 - idle),
        2 * micro * setup.latency * (stages > 1) + sent / setup.bandwidth,
        idle,
    )


def _ps(demand: Demand, setup: Setup) -> Plan:
    """One server, through whose door W gradients come in and W models go out: T = W N beta; it keeps the state."""
    w = setup.workers
    return Plan(
        "ps:bsp",
        demand.size,
        demand.trained,
        0.0,
        demand.activations * _part(setup),
        0.0,
        demand.trained,
        demand.seconds * _part(setup),
        2 * setup.latency + w * demand.trained / setup.bandwidth,
    )


def _meeting(demand: Demand, setup: Setup, *, name: str, every: int, copies: int) -> Plan:
    """The ring once in H steps, with the number of samples; copies are the agreed model and the outer state."""
    w = setup.workers
    found = asdict(_ring(demand, setup, name=f"{name}:{every}", padded=True))
    sent = 2 * (w - 1) / w * (_padded(demand.trained, w, demand.numbers) + 4) / every
    least = 2 * (w - 1) * setup.latency / every
    return Plan(
        **{
            **found,
            "bytes": sent,
            "communication": least + sent / setup.bandwidth,
            "more": copies * demand.trained,
        }
    )


FORMULAS: Mapping[str, Callable[[Demand, Setup], Plan]] = {
    "ddp": partial(_ring, name="ddp", padded=False),
    "ring": partial(_ring, name="ring", padded=True),
    "zero1": _zero1,
    "fsdp": _fsdp,
    "pipeline": _pipeline,
    "ps": _ps,
    "local": partial(_meeting, name="local", every=8, copies=1),
    "diloco": partial(_meeting, name="diloco", every=50, copies=2),
}
"""Strategies whose memory and time can be reckoned."""


def plans(demand: Demand, setup: Setup) -> list[Plan]:
    """What each strategy that can be trained with would take; a pipeline where each worker would have a layer."""
    staged = 1 < setup.workers <= demand.layers
    names = [name for name in FORMULAS if name in STRATEGIES and (staged or name != "pipeline")]
    return [FORMULAS[name](demand, setup) for name in names]


def _part(setup: Setup) -> int:
    """Samples of a batch that one worker has."""
    return -(-setup.batch // setup.workers)


# --- numbers with units ---------------------------------------------------------------------------------------------

_SCALES = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_NUMBER = re.compile(r"(\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)\s*([kMGTP]?)(i?)(B|bit|)(?:/s)?")


def quantity(text: str, what: str, unit: str) -> float:
    """What a text such as "16GB", "16GiB", "1Gbit" or "2e12" says, in bytes, or a plain number.

    Args:
        unit: "B" for bytes, of which a bit is the eighth part, "" for a number.

    >>> [quantity(text, "memory", "B") for text in ("2GB", "1 GiB", "1Gbit")]
    [2000000000.0, 1073741824.0, 125000000.0]
    """
    found = _NUMBER.fullmatch(text.strip())
    hint = "such as 16GB, 512MB or 1Gbit" if unit else "such as 2T, or 2e12"
    if found is None or (not unit and (found[3] or found[4])) or float(found[1]) <= 0:
        raise ConfigError(f"{what} = {text!r} is not {'bytes' if unit else 'a number'} above 0", hint=hint)
    power = list(_SCALES).index(found[2])
    scale = 1024.0**power if found[3] else _SCALES[found[2]]
    return float(found[1]) * scale / (8 if found[4] == "bit" else 1)
