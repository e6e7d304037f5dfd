"""Privacy of single records in a client's own steps: DP-SGD.   Abadi et al., CCS 2016, Algorithm 1

Each step of a client descends along

    (sum_{i in batch} g_i min(1, C / |g_i|) + N(0, (z C)^2 I)) / B

where g_i is the gradient of sample i's loss and a batch has each of the client's n samples with the chance q = B / n,
independently (Poisson sampling, which the amplification by sampling of the accountants is proved for); B is the batch
size on average, fixed and known, not that of the batch. Two data sets that differ in one record, added or removed,
differ by C / B at most in what a step finds before the noise.

A method sees its client's data through this gradient and nowhere else: its program runs with batches that are
`Sealed` and without splits. What it sends is then a function of private gradients, whatever the method is.
Taken as known are how many samples clients have, and the public data. What evaluations measure on held-out data is not
covered, nor are models that clients keep for themselves and make for an evaluation (the program "personal").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from atoll import seeds, spec
from atoll.contract import (
    Around,
    Change,
    ClientData,
    Outer,
    Plan,
    Program,
    Reply,
    Through,
)
from atoll.contract.validation import ON_VALIDATION
from atoll.dpsgd import ghost, persample
from atoll.errors import ConfigError
from atoll.parts import each_part
from atoll.task import Batch, Task
from atoll.tensors import Record, Tensors

__all__ = [
    "DPSGD",
    "PrivateSteps",
    "PrivateTask",
    "Records",
    "Sealed",
    "from_stream",
    "noise_key",
    "opened",
    "sealed",
]

Noise = Callable[[Tensor, Tensors], Tensors]
"""What makes standard normal numbers like some tensors, from a key. A client that is deployed must take them from its
operating system and not from the key, which follows from a seed that others know."""

INSTEAD = "use a method that sees data through Task.gradient only, such as fedavg, fedprox or scaffold"
"""What to do where a method does not fit."""

_NOISE = 0x6E6F6973

_NUMBER = spec.number("noise", at_least=0, below=float("inf"))
_NOISES = spec.Parameter(
    "noise", f'{_NUMBER.wants}, or "auto"', lambda text: None if text == "auto" else _NUMBER.convert(text)
)


def noise_key(key: Tensor, call: int) -> Tensor:
    """The stream of the noise on the gradient that a step with this stream asks for as its `call`-th, from 1."""
    return seeds.fold(seeds.fold(key, _NOISE), call)


def from_stream(key: Tensor, like: Tensors) -> Tensors:
    """The noise of a simulation: a function of the client's stream, the same in every engine, and so NOT private."""
    flat = seeds.normals(key, like.size())
    return like.unflat(flat).map_names(lambda name, value: value.to(like[name].dtype))


@dataclass(frozen=True)
class DPSGD:
    """How far a sample may move a step, and the noise that hides it.

    Args:
        clip: C, the norm above which a sample's gradient is scaled down.
        noise: z, the standard deviation of the noise in units of C; None: the least that keeps all rounds within the
            run's `epsilon`, which a federation finds.
    """

    clip: float
    noise: float | None

    @property
    def text(self) -> str:
        """How it is written."""
        return f"{self.clip:g},{'auto' if self.noise is None else repr(self.noise)}"

    @staticmethod
    def parse(text: str) -> DPSGD:
        """From "C,z", or "C,auto".  Raises ConfigError."""
        clip, noise = spec.pair(text, "dp_sgd =", ",", spec.number("clip", above=0), _NOISES, "1.0,1.1")
        if clip == float("inf") and noise != 0:
            raise ConfigError(
                f"dp_sgd = {text!r}: noise goes by the clip norm, and without one there is none that hides a sample",
                hint='give a clip norm: dp_sgd = "1.0,1.1"; "inf,0" clips nothing and hides nothing',
            )
        return DPSGD(clip, noise)


@dataclass
class Opened:
    """What is behind a seal."""

    batch: Batch
    expected: Tensor
    """How many samples batches have on average."""
    mask: Tensor
    """What is shown in the place of the batch's."""
    calls: int = 0
    """How many gradients it was asked for."""


class Sealed:
    """Inputs, or targets, that a method has in hand and cannot look at; `PrivateTask.gradient` can."""

    def __init__(self, inside: Opened) -> None:
        self._inside = inside

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise ConfigError("dp_sgd: the method looks at samples beside the gradient of a step", hint=INSTEAD)

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):  # what Python and torch ask any object
            raise AttributeError(name)
        self._refuse()

    __len__ = __getitem__ = __iter__ = __torch_function__ = __array__ = __bool__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __neg__ = __matmul__ = (
        _refuse
    )


class PrivateTask(Task):
    """A task whose gradient of a sealed batch is private; of any other batch it is the plain one.

    Args:
        task: what is learned.
        ghosted: whether its layers are ones that `atoll.dpsgd.ghost` knows.
    """

    def __init__(self, task: Task, rule: DPSGD, ghosted: bool, noise: Noise = from_stream) -> None:
        self.__dict__.update(task.__dict__)
        self.rule, self.ghosted, self.noise = rule, ghosted, noise

    def gradient(self, params: Tensors, buffers: Tensors, batch: Batch) -> tuple[Tensors, Tensor, Tensors]:
        """(private gradient, 0, the buffers as they were): the loss of a batch is not released."""
        if not isinstance(batch.inputs, Sealed):
            return super().gradient(params, buffers, batch)
        inside = opened(batch)
        if batch.mask is not inside.mask:
            raise ConfigError(
                "dp_sgd: the method weighs the samples of a batch, or takes some of them", hint=INSTEAD
            )
        inside.calls += 1
        total = self.clipped_sum(params, buffers, inside.batch)
        if self.rule.noise:
            key = noise_key(inside.batch.key, inside.calls)
            total = total + self.noise(key, params) * (self.rule.noise * self.rule.clip)
        return total / inside.expected, torch.zeros_like(inside.expected), buffers

    def clipped_sum(self, params: Tensors, buffers: Tensors, batch: Batch) -> Tensors:
        """sum_i g_i min(1, C / |g_i|) over the samples of a batch, which may be empty."""
        if not len(batch.mask):  # kernels want a row

            def blank(part: Tensor) -> Tensor:
                return part.new_zeros((1, *part.shape[1:]))

            batch = Batch(each_part(blank, batch.inputs), blank(batch.targets), blank(batch.mask), batch.key)
        found = ghost.clipped_sum if self.ghosted else persample.clipped_sum
        return found(self, params, buffers, batch, self.rule.clip)


@dataclass(frozen=True)
class PrivateSteps(Through):
    """Runs a program that trains, with sealed batches and without splits."""

    inner: Program

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(split for split in self.inner.reads if split == "public")

    def plan(self) -> Plan:
        return self.inner.plan()._replace(poisson=True)

    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        size = self.inner.plan().batch_size
        expected = data.count.clamp(min=1) if size is None else data.count.clamp(min=1, max=size)
        return Record(inner=self.inner.begin(task, received, memory, _closed(data)), expected=expected)

    def step(self, task: Task, local: Record, batch: Batch) -> Record:
        return local.replace(inner=self.inner.step(task, local.inner, sealed(batch, local.expected)))

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        reply, memory = self.inner.finish(task, local.inner, _closed(data))
        shown = {name: value for name, value in reply.metrics.items() if name != "loss"}
        return reply._replace(metrics=Record(shown)), memory


def sealed(batch: Batch, expected: Tensor) -> Batch:
    """A batch that cannot be looked at, and seems to have as many samples as batches have on average."""
    count = max(len(batch.mask), 1)
    mask = (expected / count).expand(count)
    seal: Any = Sealed(Opened(batch, expected, mask))
    return Batch(seal, seal, mask, batch.key)


def opened(batch: Batch) -> Opened:
    """What is behind the seal of a batch."""
    seal: Any = batch.inputs
    return object.__getattribute__(seal, "_inside")  # type: ignore[no-any-return]


def _closed(data: ClientData) -> ClientData:
    return data._replace(train=None, validation=None, test=None)


@dataclass(frozen=True)
class Records(Outer):
    """A channel that makes the programs which train private, inside of what happens to updates on their way.

    Programs that judge ("evaluate", "personal") are as they were: their figures are measured, not sent.

    Args:
        channel: what happens to updates on their way.
        rule: how steps are made private.
        calls: gradients that a step takes of one batch.
    """

    rule: DPSGD | None = None
    calls: int = 1

    def program(self, name: str, inner: Program, change: Change | None) -> Around:
        if name.removesuffix(ON_VALIDATION) not in ("evaluate", "personal"):
            inner = PrivateSteps(inner)
        return self.channel.program(name, inner, change)
