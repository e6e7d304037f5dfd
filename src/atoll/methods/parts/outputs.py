"""What models make of public inputs, and a step's gradient towards what they ought to make of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from atoll.errors import ConfigError
from atoll.gradient import grad_and_value
from atoll.parts import Inputs, pieces
from atoll.task import Batch, Task
from atoll.tensors import Tensors

__all__ = ["common_outputs", "cuts", "gradient_towards", "outputs"]


def common_outputs(method: str, tasks: Sequence[Task], public: Inputs | None) -> Tensor:
    """Zeros in the shape that every architecture's outputs have for one input: [1, ...].

    Raises ConfigError where there are no public inputs [n, ...], or where the architectures' outputs differ in shape.
    """
    if public is None:
        raise ConfigError(
            f"{method} distils on public data, and there are none",
            hint="set public=500, so many training samples that are set aside without their labels",
        )
    made = []
    for task in tasks:
        params, buffers = (part.map(lambda t: t.to(public.device)) for part in task.initial())
        with torch.no_grad():
            made.append(task.predict(params, buffers, public[:1])[0])
    for number, other in enumerate(made):
        if other.shape != made[0].shape:
            raise ConfigError(
                f"{method} compares outputs: model {number} gives {tuple(other.shape[1:])} an input, "
                f"model 0 {tuple(made[0].shape[1:])}",
                hint="let all models end in as many outputs",
            )
    return torch.zeros_like(made[0])


def outputs(task: Task, params: Tensors, buffers: Tensors, inputs: Inputs, rows: int) -> Tensor:
    """A model's outputs [n, ...] in evaluation mode, made of so many inputs at a time."""
    return torch.cat([task.predict(params, buffers, part)[0] for part in pieces(inputs, rows)])


def gradient_towards(
    task: Task, params: Tensors, buffers: Tensors, batch: Batch, distance: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensors, Tensor, Tensors]:
    """(gradient, value, new buffers) of distance(outputs, batch.targets), a scalar; the module is in training mode."""

    def objective(params: Tensors) -> tuple[Tensor, Tensors]:
        made, moved = task.predict(params, buffers, batch.inputs, batch=batch)
        return distance(made, batch.targets), moved

    return grad_and_value(objective, params)


def cuts(count: int, size: int) -> list[slice]:
    """`count` rows in order, so many at a time. A last single row, too few for BatchNorm, joins the ones before it."""
    starts = list(range(0, count, size))
    if len(starts) > 1 and count - starts[-1] == 1:
        starts.pop()
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], count], strict=True)]
