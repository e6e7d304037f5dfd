"""What `dp_sgd` needs of a model and of a method, tried before anything runs: all that does not fit is refused."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from atoll import seeds
from atoll.contract import ClientData, Method
from atoll.data import FederatedData
from atoll.dpsgd import ghost, persample
from atoll.dpsgd.records import DPSGD, INSTEAD, PrivateSteps, PrivateTask, opened, sealed
from atoll.draws import Drawn
from atoll.errors import AtollError, ConfigError
from atoll.parts import Inputs, each_part, joined
from atoll.privacy import Everyone, Gaussian, Poisson
from atoll.task import Batch, Task
from atoll.tensors import Record, Tensors, to_device

__all__ = ["LOSSY", "Mechanism", "check_method", "examples", "mechanism", "of_samples", "private_task"]

_ROWS = 3

LOSSY = {"choose": ("importance", "oort", "power", "tifl"), "adaptive": ("adacomm", "cohort")}
"""Rules by the setting they are of, that go by training losses, which private clients do not tell."""


class Mechanism(NamedTuple):
    """What a client's round is to an accountant: so many steps of a subsampled Gaussian mechanism, Poisson batches.

    Adjacent data sets differ in one record of one client, added or removed. Clients hold different records: a run's
    epsilon is the largest of the clients' (parallel composition), each over the rounds in which it took part. Which is
    the largest does not follow from how many samples they have: of 33, in batches of 32, a sample is in nearly both.
    """

    rate: float
    """q, the chance of a record to be in a batch."""
    steps: int
    """Steps a round, as planned; a client that does less spends less."""
    noise: float
    """z, the deviation of the noise in units of how far a record moves the sum, all gradients of a step together."""


def mechanism(rule: DPSGD, method: Method, samples: int, calls: int = 1) -> Mechanism:
    """What a client with so many samples does in a round.

    Args:
        calls: gradients that a step takes of the same batch (see `check_method`): together they are as one of noise
            z / sqrt(calls).
    """
    assert rule.noise is not None, "noise is found before it is accounted for"
    plan = method.plan()
    size = min(plan.batch_size or samples, samples)
    if not samples:
        return Mechanism(0.0, 0, rule.noise)
    steps = plan.epochs * -(-samples // size) if plan.steps is None else plan.steps
    return Mechanism(size / samples, steps, rule.noise / max(calls, 1) ** 0.5)


def of_samples(rule: DPSGD, method: Method, sizes: Iterable[int], calls: int = 1) -> frozenset[Gaussian]:
    """What a round is, as events, to samples of clients that have so many (`mechanism`)."""
    each = {mechanism(rule, method, size, calls) for size in sizes if size}
    return frozenset(
        Gaussian(noise=z, sampling=Poisson(rate) if rate < 1 else Everyone(), count=steps)
        for rate, steps, z in each
        if steps
    )


# --- models ---------------------------------------------------------------------------------------------------------


def examples(data: FederatedData) -> tuple[Inputs, Tensor]:
    """Inputs and targets of three samples, of the first clients that have some; fewer are repeated."""
    inputs, targets = [], []
    for client in range(min(len(data), 16)):
        found = data.samples(client)
        if found is not None and found.count:
            inputs.append(found.inputs[:_ROWS])
            targets.append(found.targets[:_ROWS])
        if sum(map(len, targets)) >= _ROWS:
            break
    at = torch.arange(_ROWS) % sum(map(len, targets))
    return joined(inputs).index_select(0, at), torch.cat(targets).index_select(0, at)


def private_task(task: Task, rule: DPSGD, inputs: Inputs, targets: Tensor) -> PrivateTask:
    """The task with private gradients.  Raises ConfigError where samples of a batch are not apart in this model."""
    batch = Batch(inputs, targets, torch.ones(len(targets)), torch.tensor(seeds.address(0, "dp_sgd")))
    if task.normalises:
        raise ConfigError(
            "dp_sgd clips the gradient of each sample, and BatchNorm mixes the samples of a batch",
            hint="use nn.GroupNorm or nn.LayerNorm in its place",
        )
    params, buffers = task.initial()
    with torch.no_grad():
        _apart(task, params, buffers, batch)
        if _ghosted(task, params, buffers, batch):
            return PrivateTask(task, rule, True)
        try:
            persample.clipped_sum(task, params, buffers, batch, rule.clip)
        except AtollError:
            raise
        except Exception as error:
            raise ConfigError(
                f"dp_sgd: this model gives no gradient of a single sample: {type(error).__name__}: "
                f"{(str(error).splitlines() or [''])[0]}",
                hint="its forward must be one that torch.func.vmap can batch, without branches on values of tensors",
            ) from error
    return PrivateTask(task, rule, False)


def _ghosted(task: Task, params: Tensors, buffers: Tensors, batch: Batch) -> bool:
    """Whether sums from what layers read are right for this model: of single samples clipped, and of several.

    With two numbers of samples, none of which can be taken for the length of another axis.
    """
    try:
        for at in range(len(batch.mask)):
            one = _rows(batch, slice(at, at + 1))
            alone = task.gradient(params, buffers, one)[0]
            norm = float(alone.norm())
            found = ghost.clipped_sum(task, params, buffers, one, norm / 2 or 1.0)
            if not _close(found, alone * 0.5):
                return False
        summed = task.gradient(params, buffers, batch)[0] * float(len(batch.mask))
        return _close(ghost.clipped_sum(task, params, buffers, batch, float("inf")), summed)
    except ghost.Unsuited:
        return False


def _rows(batch: Batch, rows: slice) -> Batch:
    return Batch(batch.inputs[rows], batch.targets[rows], batch.mask[rows], batch.key)


def _close(one: Tensors, other: Tensors) -> bool:
    return float((one - other).norm()) <= 1e-3 * float(other.norm()) + 1e-7


def _apart(task: Task, params: Tensors, buffers: Tensors, batch: Batch) -> None:
    """Refuse models, losses and augmentations in which what a sample comes to depends on others of its batch."""

    def come(batch: Batch) -> tuple[Tensor, Tensors]:
        if task.augment is not None:
            with Drawn(batch.key, "the augmentation"):
                batch = batch._replace(inputs=task.augment(batch.inputs))
        given, moved = task.called(params, buffers, batch.inputs, batch)
        return task.losses(given, batch.targets)[0], moved

    def other(part: Tensor) -> Tensor:
        return torch.cat([part[:1], torch.zeros_like(part[1:])])

    alone, moved = come(batch)
    beside, _ = come(batch._replace(inputs=each_part(other, batch.inputs)))
    if not torch.allclose(alone, beside, rtol=1e-4, atol=1e-6):
        raise ConfigError(
            f"dp_sgd clips the gradient of each sample, and in {type(task.module).__name__} (or its loss, or the "
            "augmentation) what a sample comes to depends on the others of its batch",
            hint="take statistics within a sample, as nn.GroupNorm and nn.LayerNorm do",
        )
    for name, value in buffers.items():
        if not torch.equal(value, moved[name]):
            raise ConfigError(
                f"dp_sgd: the buffer {name} follows the samples in training, and nothing would hide them in it",
                hint="use layers without running statistics, such as nn.GroupNorm, or freeze them (eval mode)",
            )


# --- methods --------------------------------------------------------------------------------------------------------


def check_method(method: Method, task: Task, state: Record, data: FederatedData) -> int:
    """How many gradients of a batch the method takes in a step.

    Raises ConfigError where the method sees its clients' data in any other way. What it does in later steps only is
    refused there and then.
    """
    kind = type(method).__name__
    for name, program in [("train", method), *method.programs().items()]:
        private = [split for split in program.reads if split != "public"]
        if private and name not in ("evaluate", "personal"):
            raise ConfigError(
                f"dp_sgd hides samples in the gradients of steps, and {kind} looks at {' and '.join(private)} data "
                "as a whole beside them",
                hint=INSTEAD,
            )
    if method.enrol(state, [0]) is not None:
        raise ConfigError(
            f"dp_sgd hides samples in the gradients of steps, and {kind} asks new clients about their data",
            hint=INSTEAD,
        )
    work = method.broadcast(state, [0])
    steps = PrivateSteps(method.program(work.program))
    key, inputs, targets = torch.tensor(seeds.address(0, "dp_sgd")), *examples(data)
    public = data.public and Batch(
        data.public.inputs, data.public.targets, torch.ones(data.public.count), key
    )
    given = ClientData(torch.tensor(float(_ROWS)), key, public=public if "public" in steps.reads else None)
    received = to_device(work.received(0), torch.device("cpu"))
    try:
        with torch.no_grad(), Drawn(key, "a client program"):
            local = steps.begin(task, received, steps.recall(task, received, None), given)
            batch = sealed(Batch(inputs, targets, torch.ones(len(targets)), key), local.expected)
            steps.inner.step(task, local.inner, batch)
            steps.finish(task, local, given)
    except ConfigError as error:
        raise ConfigError(error.message.replace("the method", kind), hint=error.hint) from error
    return opened(batch).calls
