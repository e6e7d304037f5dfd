"""Structures of which some tensors are stacked by client and others are the same for all: vmap's axes, and parts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from atoll.rooms import blank
from atoll.tensors import map_leaves

__all__ = ["OWN", "SHARED", "differs", "own_dims", "pick", "pick_shared", "powers", "repeated"]

SHARED = None
"""One tensor for all clients."""
OWN = 0
"""Stacked by client along the first axis."""


def own_dims(tree: Any) -> Any:
    """vmap's axes for a structure whose tensors are all stacked by client."""
    return map_leaves(lambda leaf: OWN if isinstance(leaf, Tensor) else None, tree)


def repeated(value: Tensor, size: int) -> Tensor:
    """A tensor so many times: [size, ...]."""
    wide = value.unsqueeze(0).expand(size, *value.shape)
    return blank(wide).copy_(wide)


def pick(tree: Any, dims: Any, at: int) -> Any:
    """One client's part of a stacked structure."""
    values, spec = pytree.tree_flatten(tree)
    axes = pytree.tree_leaves(dims, is_leaf=lambda d: d is None)
    return pytree.tree_unflatten([v if a is None else v[at] for v, a in zip(values, axes, strict=True)], spec)


def pick_shared(tree: Any, dims: Any) -> Any:
    """A stacked structure with what is the same for all clients as one tensor."""
    values, spec = pytree.tree_flatten(tree)
    axes = pytree.tree_leaves(dims, is_leaf=lambda d: d is None)
    return pytree.tree_unflatten([v[0] if a is None else v for v, a in zip(values, axes, strict=True)], spec)


def differs(leaf: Any) -> bool:
    """Whether a value inside `vmap` is one of each client."""
    return isinstance(leaf, Tensor) and torch._C._functorch.is_batchedtensor(leaf)


def powers(count: int) -> list[int]:
    """`count` as a falling sum of powers of two."""
    return [1 << bit for bit in reversed(range(count.bit_length())) if count >> bit & 1]
