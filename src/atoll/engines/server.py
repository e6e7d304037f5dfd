"""The server's steps, captured like those of clients: what a method asks of `Population.quick`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from atoll.engines.capture import Captured, capture
from atoll.errors import EngineError

__all__ = ["Quick"]

T = TypeVar("T")

_MOST = 64  # captures that are kept: forms that change from round to round would be without end


class Quick:
    """Calls pure functions by captures of them, one for each form of arguments. Its twin is `contract.as_written`.

    A capture is used from the first call on, so that a resumed run comes to the bits of one that was not broken off.
    What cannot be captured, since it asks for values of tensors, is called as written.
    """

    def __init__(self) -> None:
        self.known: dict[Any, _Call | None] = {}

    def __call__(self, function: Callable[..., T], *arguments: object) -> T:
        leaves, spec = pytree.tree_flatten(arguments)
        key = (function, spec, *map(_form, leaves))
        if key not in self.known:
            if len(self.known) == _MOST:
                del self.known[next(iter(self.known))]
            self.known[key] = _captured(function, leaves, spec)
        found = self.known[key]
        if found is None:
            return function(*arguments)
        with torch.no_grad():
            new = found.step(found.held, [leaf for leaf in leaves if isinstance(leaf, Tensor)])
        return pytree.tree_unflatten(_filled(found.made, new), found.spec)  # type: ignore[no-any-return]


class _Call(NamedTuple):
    """A captured function: all it gives is new, so that `held`, a leaf for each tensor of it, stands for a state."""

    step: Captured
    held: list[Tensor]
    made: list[Any]
    spec: pytree.TreeSpec


def _captured(function: Callable[..., Any], leaves: list[Any], spec: pytree.TreeSpec) -> _Call | None:
    def called(tensors: list[Tensor]) -> Any:
        return function(*pytree.tree_unflatten(_filled(leaves, tensors), spec))

    def step(_: list[Tensor], tensors: list[Tensor]) -> list[Tensor]:
        return [leaf for leaf in pytree.tree_leaves(called(tensors)) if isinstance(leaf, Tensor)]

    given = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    with torch.no_grad():
        made, made_spec = pytree.tree_flatten(called(given))
        try:
            found = capture(step, [leaf for leaf in made if isinstance(leaf, Tensor)], given)
        except EngineError:
            return None
    forms = [leaf.new_empty(()) if isinstance(leaf, Tensor) else leaf for leaf in made]
    return _Call(found, [leaf for leaf in forms if isinstance(leaf, Tensor)], forms, made_spec)


def _form(leaf: Any) -> Any:
    return (leaf.shape, leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else leaf


def _filled(leaves: list[Any], tensors: Sequence[Tensor]) -> list[Any]:
    """The leaves with these tensors in the places of theirs."""
    following = iter(tensors)
    return [next(following) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
