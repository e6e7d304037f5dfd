"""Gradients of functions of named tensors, inside `vmap` and captured steps too, to the bits of `torch.func`.

`torch.func.grad_and_value` is the readable twin. Its first call imports `torch._dynamo`, for a second and a hundred
megabytes, to tell a compiler that is not there to look away; nothing else in a gradient needs that. What is private to
torch and used here is named in one place, and where a torch has it no more, the twin takes over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar

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

__all__ = ["LEAN", "grad_and_value", "gradients_at", "needs_notes", "recomputed"]

P = TypeVar("P")
A = TypeVar("A")

_needed: ContextVar[bool] = ContextVar("needed", default=False)


class _Piece(NamedTuple):
    """A part of an objective whose backward pass computes it again."""

    again: Callable[[Tensor], Tensor]
    came: Tensor
    went: Tensor
    """What it gave, as the rest of the objective knows it: a leaf."""


_pieces: ContextVar[tuple[int, list[_Piece]] | None] = ContextVar("pieces", default=None)
"""The level of the gradient that is taken and its pieces, in order; None where nothing is computed again."""


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
        pieces: list[_Piece] = []
        cut = _pieces.set(None if kept else (level, pieces))
        try:
            value, aux = objective(inputs)
            kept = kept or _needed.get()
        finally:
            _pieces.reset(cut)
            _needed.reset(before)
        leaves, spec = pytree.tree_flatten(inputs)
        found = _pulled(value, [*leaves, *(piece.went for piece in pieces)], kept, bool(pieces))
        if pieces:
            value = value.detach()  # its part of the graph goes, before others come
            found = _through(pieces, leaves, found)
        gradient = pytree.tree_unflatten(found, spec)
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


def recomputed(function: Callable[[Tensor], Tensor], again: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """function(x), of which nothing is kept for the backward pass but x.   Chen et al. 2016 (arXiv 1604.06174)

    Args:
        function: a part of the objective whose gradient is taken.
        again: computes the same later on, outside the objective.

    In the backward pass `again` does it once more, and its own backward pass follows at once: what is in memory is what
    one part needs, for the price of another forward pass. Where a gradient is differentiated further, or none is taken,
    it is just function(x). torch's own checkpoints are hooks of saved tensors, which function transforms refuse.
    """
    taken = _pieces.get()
    if taken is None:
        return function(x)
    level, pieces = taken
    with torch.no_grad():
        found = function(x).detach()
    if torch._C._functorch.maybe_get_level(found) != level:
        found = _wrap_all_tensors(found, level)
    _create_differentiable(found, level)
    pieces.append(_Piece(again, x, found))
    return found


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


def _pulled(value: Tensor, leaves: list[Tensor], kept: bool, held: bool = False) -> list[Tensor]:
    """The gradient by each leaf: zeros for leaves that the value does not depend on.

    Args:
        kept: whether what the backward pass does is noted.
        held: whether the graph is needed once more.
    """
    if not value.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    found = torch.autograd.grad(
        [value], leaves, create_graph=kept, retain_graph=kept or held, allow_unused=True
    )
    return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves, strict=True)]


def _through(pieces: list[_Piece], leaves: list[Tensor], found: list[Tensor]) -> list[Tensor]:
    """The gradient by each leaf, from those by the leaves and by what the pieces gave, the last of them first."""
    points, flows = [*leaves, *(piece.went for piece in pieces)], list(found)
    for piece in reversed(pieces):
        points.pop()
        more = _again(piece, points, flows.pop())
        flows = [a if b is None else a + b for a, b in zip(flows, more, strict=True)]
    return flows


def _again(piece: _Piece, points: list[Tensor], flow: Tensor) -> Sequence[Tensor | None]:
    """What flows back through a piece to each point; the graph of it is gone afterwards."""
    # A copy: in a captured step operations on the same tensor would be the same, and kept.
    value = piece.again(piece.came.clone())
    if not value.requires_grad:
        return [None] * len(points)
    return torch.autograd.grad([value], points, [flow], retain_graph=True, allow_unused=True)
