"""What a model makes of its inputs before its last layer: features, as a pure function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from atoll.errors import ConfigError
from atoll.gradient import grad_and_value
from atoll.parts import Inputs
from atoll.task import Batch, Task
from atoll.tensors import Tensors

__all__ = ["Watch", "classes", "features", "gradient_with", "watched", "widths"]

Watch = Callable[[Task, int], AbstractContextManager[Callable[[], Tensor]]]
"""Inside, a task's module is watched; the function tells what was seen in its latest forward, for so many rows."""


def features(
    task: Task, params: Tensors, buffers: Tensors, inputs: Inputs, *, batch: Batch | None = None
) -> Tensor:
    """The input of the last layer that has parameters, a row a sample: [b, d].

    The last layer is the one that the forward calls last. With `batch` the module is in training mode, else in
    evaluation mode. Works under `vmap`, `grad` and in captured steps.
    """
    with watched(task, len(inputs)) as seen:
        task.predict(params, buffers, inputs, batch=batch)
    return seen()


def gradient_with(
    task: Task,
    params: Tensors,
    buffers: Tensors,
    batch: Batch,
    objective: Callable[[Tensor, Tensor], Tensor],
    watch: Watch | None = None,
) -> tuple[Tensors, Tensor, Tensors]:
    """As `Task.gradient`, but of objective(mean training loss, features [b, d]); it reports the plain loss.

    With `watch` the objective gets what that sees in the place of features.
    """

    def value(params: Tensors) -> tuple[Tensor, tuple[Tensor, Tensors]]:
        with (watch or watched)(task, len(batch.mask)) as seen:
            loss, moved = task.loss(params, buffers, batch)
        return objective(loss, seen()), (loss, moved)

    gradient, _, (loss, moved) = grad_and_value(value, params)
    return gradient, loss, moved


@contextmanager
def watched(task: Task, rows: int) -> Iterator[Callable[[], Tensor]]:
    """Inside, the module's forward is watched; the function tells the features of the latest one, for so many rows."""
    latest: list[Tensor] = []

    def note(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        latest[:] = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)][:1] or latest

    def seen() -> Tensor:
        if not latest or latest[0].shape[:1] != (rows,):
            shape = tuple(latest[0].shape) if latest else None
            raise ConfigError(
                f"the model's last layer with parameters has no input with a row a sample (its shape is {shape})",
                hint="let the model end in a layer that reads features [batch, ...], such as nn.Linear",
            )
        return latest[0].reshape(rows, -1)

    hooks = [
        layer.register_forward_pre_hook(note, with_kwargs=True)
        for layer in task.module.modules()
        if any(True for _ in layer.parameters(recurse=False))
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def widths(task: Task, example: Inputs, method: str) -> tuple[int, int]:
    """How many features and how many classes a model has, from one input [1, ...], for methods that need labels.

    Raises ConfigError, naming the method, unless there is one class label a sample and one output a class.
    """
    with watched(task, len(example)) as seen:
        outputs, _ = task.predict(*task.initial(), example)
    return seen().shape[1], classes(task, outputs, method)


def classes(task: Task, outputs: Tensor, method: str) -> int:
    """How many classes outputs [b, classes] tell apart.  Raises ConfigError, naming the method, for other outputs."""
    if outputs.ndim != 2 or task.loss_name in ("bce", "mse", "l1", "listwise", "rated"):
        raise ConfigError(
            f"{method} needs one class label a sample and one output a class; the model gives outputs of shape "
            f"{tuple(outputs.shape)} for one sample, and the loss is {task.loss_name}",
            hint="use a classifier with outputs [batch, classes] and cross_entropy",
        )
    return outputs.shape[1]
