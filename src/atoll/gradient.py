"""Gradients of functions of named tensors, inside `vmap` and captured steps too, to the bits of `torch.func`.

`torch.func.grad_and_value` is the readable twin. Its first call imports `torch._dynamo`, for a second and a hundred
megabytes, to tell a compiler that is not there to look away; nothing else in a gradient needs that. What is private to
torch and used here is named in one place, and where a torch has it no more, the twin takes over.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

try:
    from torch._C._functorch import TransformType, get_interpreter_stack
    from torch._functorch.eager_transforms import (
        _create_differentiable,
        _undo_create_differentiable,
        _wrap_all_tensors,
        grad_increment_nesting,
    )

    LEAN = True
    """Whether this torch has what gradients are made of here; without, they are the same and start a second later."""
except ImportError:  # pragma: no cover - a torch to come
    LEAN = False

__all__ = ["LEAN", "grad_and_value", "gradients_at", "needs_notes"]

P = TypeVar("P")
A = TypeVar("A")

_needed: ContextVar[bool] = ContextVar("needed", default=False)


def grad_and_value(objective: Callable[[P], tuple[Tensor, A]], params: P) -> tuple[P, Tensor, A]:
    """(gradient, value, aux) of objective(params) -> (value, aux): a scalar, and a pytree of tensors that comes along.

    `params` is a pytree of tensors and so is the gradient, zeros where the value does not depend on them. Nests, as
    gradients of gradients do.
    """
    if not LEAN:
        gradient, (value, aux) = torch.func.grad_and_value(objective, has_aux=True)(params)
        return gradient, value, aux
    kept, before = _within_another(), _needed.set(False)
    with grad_increment_nesting() as level, torch.enable_grad():
        inputs: Any = _wrap_all_tensors(params, level)
        _create_differentiable(inputs, level)
        try:
            value, aux = objective(inputs)
            kept = kept or _needed.get()
        finally:
            _needed.reset(before)
        leaves, spec = pytree.tree_flatten(inputs)
        gradient = pytree.tree_unflatten(_pulled(value, leaves, kept), spec)
        return _undo_create_differentiable((gradient, value, aux), level)  # type: ignore[type-var]


def gradients_at(
    objective: Callable[[P], tuple[Tensor, list[Tensor], A]], params: P
) -> tuple[list[Tensor], A]:
    """(gradients, aux) of objective(params) -> (value, points, aux): by tensors on the way from parameters to value.

    What flows back through them, without the gradients by the parameters themselves. Needs `LEAN`.
    """
    kept, before = _within_another(), _needed.set(False)
    with grad_increment_nesting() as level, torch.enable_grad():
        inputs: Any = _wrap_all_tensors(params, level)
        _create_differentiable(inputs, level)
        try:
            value, points, aux = objective(inputs)
            kept = kept or _needed.get()
        finally:
            _needed.reset(before)
        return _undo_create_differentiable((_pulled(value, points, kept), aux), level)  # type: ignore[type-var]


def needs_notes() -> None:
    """Said inside an objective: its backward pass works only where it is noted itself.

    oneDNN's LSTM is so: under a function transform its forward pass leaves out what its plain backward pass reads.
    """
    _needed.set(True)


def _within_another() -> bool:
    """Whether somebody may want the gradient of a gradient: what the backward pass does is then noted, too."""
    differentiates = (TransformType.Grad, TransformType.Jvp)
    return torch.is_grad_enabled() or any(
        each.key() in differentiates for each in get_interpreter_stack() or ()
    )


def _pulled(value: Tensor, leaves: list[Tensor], kept: bool) -> list[Tensor]:
    """The gradient by each leaf: zeros for leaves that the value does not depend on."""
    if not value.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    found = torch.autograd.grad([value], leaves, create_graph=kept, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves, strict=True)]
