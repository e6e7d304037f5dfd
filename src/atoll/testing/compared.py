"""Structures beside each other: their leaves by name, to the bit or within a tolerance, and what is in their form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = ["copied", "differs", "distant", "named", "reformed"]


def named(tree: Any) -> dict[str, Any]:
    """The leaves of any structure by dotted name."""
    return {".".join(map(_step, path)): leaf for path, leaf in pytree.tree_flatten_with_path(tree)[0]}


def _step(key: Any) -> str:
    return str(next(getattr(key, name) for name in ("key", "name", "idx") if hasattr(key, name)))


def copied(tree: Any) -> dict[str, Any]:
    """The leaves by name, as they are now."""
    return {name: leaf.clone() if isinstance(leaf, Tensor) else leaf for name, leaf in named(tree).items()}


def differs(before: Any, after: Any) -> str | None:
    """The first name under which two structures are not equal to the bit, or None."""
    one, two = named(before), named(after)
    for name in [*one, *two]:
        if name not in one or name not in two or not _same(one[name], two[name]):
            return name
    return None


def _same(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return type(a) is type(b) and bool(a == b or (a != a and b != b))
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(_bits(a), _bits(b))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def distant(one: Any, two: Any, tolerance: float) -> tuple[str, float] | None:
    """Where two structures are furthest apart, (name, relative distance), or None where all is within the tolerance.

    A tensor's distance is ||a - b|| / ||a||, with 0.01 for a norm that is less. Other forms are infinitely far.
    """
    first, second = named(one), named(two)
    gaps = {name: _gap(first.get(name), second.get(name)) for name in [*first, *second]}
    name = max(gaps, key=gaps.__getitem__, default="")
    return (name, gaps[name]) if gaps and not gaps[name] <= tolerance else None


def _gap(a: Any, b: Any) -> float:
    if a is None and b is None:
        return 0.0
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        a, b = torch.tensor(float(a)), torch.tensor(float(b))
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return 0.0 if a == b else float("inf")
    if a.dtype != b.dtype or a.shape != b.shape:
        return float("inf")
    gap = float((a.double() - b.double()).norm() / a.double().norm().clamp(min=1e-2))
    return gap if gap == gap else float("inf")


def reformed(before: Any, after: Any) -> str | None:
    """How the form of one structure differs from that of another, in words, or None.

    Numbers that are no tensors belong to the form: captured steps hold them constant.
    """
    one, two = named(before), named(after)
    for name in [*one, *two]:
        if name not in two:
            return f"{name} is gone"
        if name not in one:
            return f"{name} is new"
        a, b = one[name], two[name]
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            if (a.dtype, a.shape) != (b.dtype, b.shape):
                return f"{name} was {_form(a)} and is {_form(b)}"
        elif isinstance(a, Tensor) or isinstance(b, Tensor):
            return f"{name} was {type(a).__name__} and is {type(b).__name__}"
        elif a != b:
            return f"{name}, which is no tensor, was {a!r} and is {b!r}"
    return None


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
